//! The `manyhands` command.

fn main() -> std::process::ExitCode {
    manyhands_cli::run(std::env::args_os())
}
