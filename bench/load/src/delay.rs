//! A network that takes its time: passes everything on, in order, as long after it came as is asked for.
//!
//! What comes meanwhile is kept, so the delay costs no throughput. The delay is the same for all, so
//! one queue, in the order in which things came, is enough for every connection. A thread sleeps for
//! it, since the runtime's timer counts milliseconds.

use std::io::Write;
use std::sync::mpsc as std_mpsc;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::clock;

/// Bytes that are read at a time.
const ROOM: usize = 64 << 10;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// HOST:PORT of the server
    #[arg(long)]
    to: String,
    /// Delay of each direction
    #[arg(long)]
    ms: u64,
}

/// Something on its way: when it came, and where it goes.
type Parcel = (Instant, Bytes, mpsc::UnboundedSender<Bytes>);

/// Prints the port that clients connect to, and serves until it is killed.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let road = road(Duration::from_millis(arguments.ms));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(serve(&arguments.to, road))
}

async fn serve(to: &str, road: std_mpsc::Sender<Parcel>) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    writeln!(std::io::stdout(), "{}", listener.local_addr()?.port())?;
    loop {
        let (client, _) = listener.accept().await?;
        let server = TcpStream::connect(to).await?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        for passing in
            [pass(from_client, to_server, road.clone()), pass(from_server, to_client, road.clone())]
        {
            #[expect(clippy::disallowed_methods, reason = "this proxy ends by being killed")]
            tokio::spawn(passing);
        }
    }
}

/// Where parcels are brought to be delivered `delay` later, each in its turn.
fn road(delay: Duration) -> std_mpsc::Sender<Parcel> {
    let (sender, parcels) = std_mpsc::channel::<Parcel>();
    std::thread::spawn(move || {
        for (came, bytes, to) in parcels {
            std::thread::sleep((came + delay).saturating_duration_since(clock::now()));
            to.send(bytes).ok();
        }
    });
    sender
}

/// One direction. A side that has left is told to the other one by the end of its stream.
async fn pass(
    from: impl AsyncRead + Unpin,
    to: impl AsyncWrite + Unpin,
    road: std_mpsc::Sender<Parcel>,
) {
    let (sender, arrived) = mpsc::unbounded_channel();
    tokio::join!(receive(from, road, sender), send(arrived, to));
}

async fn receive(
    mut from: impl AsyncRead + Unpin,
    road: std_mpsc::Sender<Parcel>,
    to: mpsc::UnboundedSender<Bytes>,
) {
    let mut inbound = BytesMut::new();
    loop {
        inbound.reserve(ROOM);
        let read = from.read_buf(&mut inbound).await;
        let parcel = (clock::now(), inbound.split().freeze(), to.clone());
        if !matches!(read, Ok(1..)) || road.send(parcel).is_err() {
            break;
        }
    }
}

async fn send(mut arrived: mpsc::UnboundedReceiver<Bytes>, mut to: impl AsyncWrite + Unpin) {
    while let Some(bytes) = arrived.recv().await {
        if to.write_all(&bytes).await.is_err() {
            return;
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
            pass(from_client, to_server, road(delay)),
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
