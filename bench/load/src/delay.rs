//! A network that takes its time: passes everything on, in order, as long after it came as is asked for.
//!
//! What comes meanwhile is kept, so the delay costs no throughput. The timer counts milliseconds: the
//! true delay is up to one longer.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::clock;

/// Bytes that are read at a time.
const ROOM: usize = 64 << 10;
/// Reads that are on their way in one direction of a connection.
const UNDER_WAY_MAX: usize = 4096;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// HOST:PORT of the server
    #[arg(long)]
    to: String,
    /// Delay of each direction
    #[arg(long)]
    ms: u64,
}

/// Prints the port that clients connect to, and serves until it is killed.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(arguments))
}

async fn serve(Arguments { to, ms }: Arguments) -> Result<()> {
    let delay = Duration::from_millis(ms);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    writeln!(std::io::stdout(), "{}", listener.local_addr()?.port())?;
    loop {
        let (client, _) = listener.accept().await?;
        let to = to.clone();
        #[expect(clippy::disallowed_methods, reason = "this proxy ends by being killed")]
        tokio::spawn(async move {
            let Ok(server) = TcpStream::connect(to).await else { return };
            client.set_nodelay(true).ok();
            server.set_nodelay(true).ok();
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::join!(pass(from_client, to_server, delay), pass(from_server, to_client, delay));
        });
    }
}

/// One direction. A side that has left is told to the other one by the end of its stream.
async fn pass(from: impl AsyncRead + Unpin, to: impl AsyncWrite + Unpin, delay: Duration) {
    let (sender, receiver) = mpsc::channel(UNDER_WAY_MAX);
    tokio::join!(receive(from, sender), send(receiver, to, delay));
}

async fn receive(mut from: impl AsyncRead + Unpin, sender: mpsc::Sender<(Instant, Bytes)>) {
    let mut inbound = BytesMut::new();
    loop {
        inbound.reserve(ROOM);
        let read = from.read_buf(&mut inbound).await;
        if !matches!(read, Ok(1..))
            || sender.send((clock::now(), inbound.split().freeze())).await.is_err()
        {
            break;
        }
    }
}

async fn send(
    mut receiver: mpsc::Receiver<(Instant, Bytes)>,
    mut to: impl AsyncWrite + Unpin,
    delay: Duration,
) {
    while let Some((came, bytes)) = receiver.recv().await {
        tokio::time::sleep_until((came + delay).into()).await;
        if to.write_all(&bytes).await.is_err() {
            break;
        }
    }
    to.shutdown().await.ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everything_arrives_in_order_and_not_too_early() {
        let (mut client, from_client) = tokio::io::duplex(64);
        let (to_server, mut server) = tokio::io::duplex(64);
        let (begun, delay) = (clock::now(), Duration::from_millis(5));
        let said: Vec<u8> = (0..=255).collect();
        let (mut heard, mut first) = (Vec::new(), Duration::ZERO);
        tokio::join!(
            pass(from_client, to_server, delay),
            async {
                for part in said.chunks(32) {
                    client.write_all(part).await.unwrap();
                }
                client.shutdown().await.unwrap();
            },
            async {
                heard.push(server.read_u8().await.unwrap());
                first = clock::now() - begun;
                server.read_to_end(&mut heard).await.unwrap();
            }
        );
        assert_eq!(heard, said);
        assert!(first >= delay, "{first:?}");
    }
}
