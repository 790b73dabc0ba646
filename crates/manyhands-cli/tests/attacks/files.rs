//! What other users of the machine can read, and a disk that is full or damaged.

use std::fs::{self, Permissions};
use std::io;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::support::{KEY, binary, wait_until, write_secret};

/// A server with a umask that allows everything; killed when dropped.
struct Open(Child);

impl Open {
    /// Serves `address` and the data directory `home/data`.
    fn start(home: &Path, address: &str) -> Self {
        let (key, ready, errors) = (home.join("key"), home.join("ready"), home.join("errors"));
        write_secret(&key, KEY);
        fs::remove_file(&ready).ok();
        let child = Command::new("sh")
            .args(["-c", "umask 0; exec \"$@\"", "sh"])
            .arg(binary())
            .args(["serve", "--listen", address, "--data"])
            .arg(home.join("data"))
            .arg("--authkey-file")
            .arg(&key)
            .arg("--ready-file")
            .arg(&ready)
            .stdout(Stdio::null())
            .stderr(fs::File::create(errors).expect("the directory can be written"))
            .spawn()
            .expect("there is a shell");
        Self(child)
    }

    fn await_ready(home: &Path, address: &str) -> Self {
        let server = Self::start(home, address);
        wait_until(|| home.join("ready").exists().then_some(())).expect("the server starts");
        server
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn mode(path: &Path) -> u32 {
    path.metadata().expect("it is there").permissions().mode() & 0o777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("it is ours");
}

#[test]
fn nobody_else_has_access_to_data_and_socket_whatever_the_umask() {
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let (data, socket) = (home.path().join("data"), home.path().join("socket"));
    let address = format!("unix:{}", socket.display());
    let server = Open::await_ready(home.path(), &address);
    assert_eq!(format!("{:o}", mode(&socket)), "600");
    assert_eq!(format!("{:o}", mode(&data)), "700");
    let files: Vec<_> = fs::read_dir(&data).expect("it is ours").map(Result::unwrap).collect();
    assert!(files.len() > 1, "a journal and its lock");
    for file in files {
        assert_eq!(format!("{:o}", mode(&file.path())), "600", "{}", file.path().display());
    }
    drop(server);
}

#[test]
fn data_that_others_have_access_to_is_named() {
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let data = home.path().join("data");
    let errors = || fs::read_to_string(home.path().join("errors")).expect("it is text");
    drop(Open::await_ready(home.path(), "127.0.0.1:0"));
    assert!(!errors().contains("have access"), "{}", errors());
    set_mode(&data, 0o755);
    drop(Open::await_ready(home.path(), "127.0.0.1:0"));
    let expected =
        format!("access to {data} (mode 755); run: chmod 700 {data}", data = data.display());
    assert!(errors().contains(&expected), "{}", errors());
    set_mode(&data, 0o700);
    set_mode(&data.join("lock"), 0o640);
    drop(Open::await_ready(home.path(), "127.0.0.1:0"));
    let expected = format!("access to {}/lock (mode 640)", data.display());
    assert!(errors().contains(&expected), "{}", errors());
}

#[test]
fn a_port_does_not_answer_while_the_directory_may_turn_out_to_be_damaged() {
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let data = home.path().join("data");
    drop(Open::await_ready(home.path(), "127.0.0.1:0"));
    for file in fs::read_dir(&data).expect("it is ours").map(Result::unwrap) {
        if file.path().extension().is_some_and(|extension| extension == "seg") {
            let mut bytes = fs::read(file.path()).expect("it is ours");
            bytes[..64].fill(0xff);
            fs::write(file.path(), bytes).expect("it is ours");
        }
    }
    // Not one that a client could get for itself, and so connect to itself.
    let port = (20_000..32_000).find(|port| TcpStream::connect(("127.0.0.1", *port)).is_err());
    let address = ("127.0.0.1", port.expect("a port is free"));
    let (has_ended, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !has_ended.load(Ordering::Relaxed) {
                match TcpStream::connect(address) {
                    Ok(_) => drop(answers.fetch_add(1, Ordering::Relaxed)),
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused),
                }
            }
        });
        for _ in 0..10 {
            let mut server = Open::start(home.path(), &format!("127.0.0.1:{}", address.1));
            let status = server.0.wait().expect("it is our child");
            assert!(!status.success(), "the directory is damaged");
        }
        has_ended.store(true, Ordering::Relaxed);
    });
    assert_eq!(answers.load(Ordering::Relaxed), 0);
}
