//! The example programs, which other crates have and cargo builds beside the tests of a workspace.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Where cargo has put the example `name`.
pub(crate) fn example(name: &str) -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(build).join(name)
}

/// Builds the examples, as they are not there yet when only this crate is tested.
fn build() -> PathBuf {
    let target =
        Path::new(env!("CARGO_BIN_EXE_manyhands")).parent().expect("a binary has a folder");
    let profile = if target.ends_with("debug") { "dev" } else { "release" };
    let build =
        ["build", "--quiet", "--offline", "--workspace", "--examples", "--profile", profile];
    let built = Command::new(env!("CARGO")).args(build).status().expect("cargo runs");
    assert!(built.success(), "the examples do not build");
    target.join("examples")
}
