//! Servers that do as little as a server can, to measure manyhands against.
//!
//! `manyhands-bench-floor canned KEYFILE` authenticates as a manager does and gives every call a fixed reply;
//! `manyhands-bench-floor echo` sends everything back. Both bind a free port of 127.0.0.1, print it on one line,
//! and serve on one thread until they are killed. They share no code with manyhands: a floor must not move with it.

mod canned;
mod echo;
mod frame;

use std::io::Write;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use tokio::net::TcpListener;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    match words.as_slice() {
        ["canned", key_file] => {
            let key = std::fs::read(key_file).with_context(|| format!("reading {key_file}"))?;
            runtime.block_on(serve(Floor::Canned(key.into())))
        }
        ["echo"] => runtime.block_on(serve(Floor::Echo)),
        _ => bail!("usage: manyhands-bench-floor canned KEYFILE | echo"),
    }
}

/// What a connection gets.
#[derive(Clone)]
enum Floor {
    /// Fixed replies, after the handshake with this key.
    Canned(Arc<[u8]>),
    /// What it has sent.
    Echo,
}

async fn serve(floor: Floor) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    writeln!(std::io::stdout(), "{}", listener.local_addr()?.port())?;
    loop {
        let (socket, _) = listener.accept().await?;
        let floor = floor.clone();
        #[expect(clippy::disallowed_methods, reason = "this server ends by being killed")]
        tokio::spawn(async move {
            let end = match floor {
                Floor::Canned(key) => canned::serve(socket, &key).await,
                Floor::Echo => echo::serve(socket).await.map_err(Into::into),
            };
            // A client that leaves is no news; anything else spoils the measurement.
            if let Err(error) = end {
                writeln!(std::io::stderr(), "floor: {error:#}").ok();
            }
        });
    }
}
