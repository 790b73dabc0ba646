//! Sends everything back as it comes: what the kernel and the event loop cost, and nothing else.

use std::io::{self, ErrorKind};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::TcpStream;

/// Room for a read, in bytes.
const ROOM: usize = 64 << 10;

pub(crate) async fn serve(mut client: TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut inbound = BytesMut::new();
    loop {
        inbound.reserve(ROOM);
        match client.read_buf(&mut inbound).await {
            Ok(0) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            read => read?,
        };
        send_back(&client, &mut inbound).await?;
    }
}

/// Sends all of `inbound`, and what comes meanwhile: a client may read only once it has sent all.
async fn send_back(client: &TcpStream, inbound: &mut BytesMut) -> io::Result<()> {
    while !inbound.is_empty() {
        match client.try_write(inbound) {
            Ok(written) => inbound.advance(written),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                client.ready(Interest::READABLE | Interest::WRITABLE).await?;
                inbound.reserve(ROOM);
                match client.try_read_buf(inbound) {
                    Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
                    _ => {}
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
