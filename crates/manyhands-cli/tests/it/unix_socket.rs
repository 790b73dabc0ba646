//! A server on a Unix socket: an address that is a path, in Python and on the command line.

use crate::support::{Python, Server, for_each_python, pythons};

#[test]
fn clients_reach_the_server_by_the_path_of_its_socket() {
    for_each_python(pythons(), |python| {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let path = dir.path().join("socket");
        let listen = format!("unix:{}", path.display());
        let server = Server::with_options(&["--listen", &listen, "--queue", "tasks"]);
        let run = |python: &Python, role: &str, arguments: &[&str]| {
            let script = python.script("loss.py").arg(role).arg(&path).arg(server.key_file());
            arguments.iter().fold(script, |script, argument| script.arg(argument)).run()
        };
        run(python, "fill", &["0", "3"]);
        assert!(run(python, "drain", &[]).contains("[0, 1, 2]"));
    });
}
