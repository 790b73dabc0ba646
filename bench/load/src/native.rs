//! The native protocol of manyhands. A slot's number is the id of its request.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use bytes::BytesMut;
use manyhands::wire::native::{Answer, HEADER_LEN, Header, Hello, Op, Route, flag};
use tokio::net::TcpStream;

use crate::drive::Work;
use crate::login;
use crate::speaker::{Reply, Speaker, Step, To, exchange};

const QUEUE: &[u8] = b"get_task_queue";
/// The handle under which it is open.
const HANDLE: u16 = 1;
/// The letter of the codec for bytes.
const BYTES: u8 = b'B';
/// All ones: for ever, or as long as the queue says.
const FOR_EVER: [u8; 8] = [0xff; 8];
const NOT_AT_ALL: [u8; 8] = [0; 8];
/// Where a task's token is in the body of a reply.
const TOKEN: std::ops::Range<usize> = 3..31;

/// One session.
pub(crate) struct Native {
    batch: u32,
    leases: bool,
}

/// Opens a session, and the queue in it.
pub(crate) async fn connect(
    address: &str,
    key: &Path,
    work: Work,
    batch: usize,
) -> Result<(TcpStream, Native)> {
    let mut hello = BytesMut::new();
    Hello::new(5, "bench".into()).write(&mut hello);
    let (mut socket, answer) =
        login::first_message(address, &login::read_key(key)?, &hello).await?;
    if let Answer::Refused(why) = Answer::decode(&answer)? {
        bail!("refused: {why}");
    }
    let mut open = Vec::new();
    frame(Op::Open, 0, 0, 0, &mut open, |body| body.extend_from_slice(QUEUE));
    let opened = exchange(&mut socket, &open, |reply| whole(reply).is_some()).await?;
    let (header, body) = whole(&opened).context("a reply")?;
    ensure!(header.op == Op::Opened as u8, "refused: {}", body.escape_ascii());
    Ok((socket, Native { batch: u32::try_from(batch)?, leases: work == Work::Cycle }))
}

impl Speaker for Native {
    fn ask(&mut self, slot: usize, token: &[u8], step: Step<'_>, out: &mut Vec<u8>) {
        match step {
            Step::Put(items, count) => frame(Op::Put, 0, slot, self.batch, out, |body| {
                body.extend_from_slice(&FOR_EVER);
                for _ in 0..count {
                    let item = items.make();
                    body.extend_from_slice(&[0, 0, 0, BYTES]);
                    body.extend_from_slice(&length(item.len()));
                    body.extend_from_slice(item);
                }
            }),
            Step::Take(count) => {
                let flags = if self.leases { flag::LEASED } else { 0 };
                frame(Op::Get, flags, slot, 0, out, |body| {
                    body.extend_from_slice(&FOR_EVER);
                    body.extend_from_slice(&FOR_EVER);
                    body.extend_from_slice(&length(count));
                    body.extend_from_slice(&[0; 4]);
                });
            }
            Step::Settle => frame(Op::Settle, 0, slot, 1, out, |body| {
                body.extend_from_slice(&NOT_AT_ALL);
                body.extend_from_slice(&[0; 4]);
                body.extend_from_slice(token);
                body.extend_from_slice(&[0; 8]);
            }),
        }
    }

    fn reply<'a>(&self, inbound: &'a [u8]) -> Result<Option<Reply<'a>>> {
        let Some((header, body)) = whole(inbound) else { return Ok(None) };
        let is_good = match Op::of_number(header.op) {
            Some(Op::Added) => header.count == self.batch && body.is_empty(),
            Some(Op::Settled) => body.is_empty(),
            Some(Op::Tasks) => header.count == self.batch,
            _ => false,
        };
        ensure!(is_good, "the server answers {header:?} {}", body.escape_ascii());
        let is_lease = self.leases && header.op == Op::Tasks as u8;
        let receipt = if is_lease { body.get(TOKEN).context("a token")? } else { b"" };
        let to = To::Slot(header.route.id as usize);
        Ok(Some(Reply { len: HEADER_LEN + body.len(), to, receipt }))
    }

    fn settles(&self) -> bool {
        self.leases
    }
}

/// Appends a frame.
fn frame(
    op: Op,
    flags: u8,
    id: usize,
    count: u32,
    out: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_LEN]);
    write(out);
    let len = u32::try_from(out.len() - start - HEADER_LEN).unwrap_or(u32::MAX);
    let route = Route { queue: HANDLE, id: u32::try_from(id).unwrap_or(u32::MAX) };
    let header = Header { len, op: op as u8, flags, route, count };
    out.get_mut(start..start + HEADER_LEN).unwrap_or_default().copy_from_slice(&header.bytes());
}

fn length(len: usize) -> [u8; 4] {
    u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes()
}

/// The frame at the start of `inbound`, once all of it has come.
fn whole(inbound: &[u8]) -> Option<(Header, &[u8])> {
    let (header, rest) = inbound.split_first_chunk::<HEADER_LEN>()?;
    let header = Header::from(*header);
    Some((header, rest.get(..header.len as usize)?))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use manyhands::wire::native::{Bounds, Fate, Request};
    use manyhands::wire::pickle::Limits;

    use super::*;
    use crate::speaker::Items;

    fn decoded(out: &[u8]) -> (u32, Request) {
        let (header, body) = whole(out).unwrap();
        assert_eq!(out.len(), HEADER_LEN + body.len(), "one frame");
        let bounds = Bounds { batch_max: 8, pickle: Limits::default() };
        let request = Request::decode(&header, Bytes::copy_from_slice(body), &bounds).unwrap();
        (header.route.id, request)
    }

    #[test]
    fn the_codec_reads_its_requests() {
        let mut session = Native { batch: 2, leases: true };
        let (mut out, mut items) = (Vec::new(), Items::new(16).unwrap());
        session.ask(7, b"", Step::Put(&mut items, 2), &mut out);
        let (7, Request::Put(put)) = decoded(&out) else { panic!("a put") };
        let put: Vec<_> = put.items.map(|item| item.unwrap().payload.bytes).collect();
        assert!(put.iter().all(|item| item.len() == 16 + 5), "{put:?}");
        assert_eq!(put.len(), 2);

        out.clear();
        session.ask(8, b"", Step::Take(2), &mut out);
        let (8, Request::Get(get)) = decoded(&out) else { panic!("a get") };
        assert!(get.leased && get.max == 2 && get.bytes_max.is_none());

        out.clear();
        session.ask(9, &[3; 28], Step::Settle, &mut out);
        let (9, Request::Settle { settlements, .. }) = decoded(&out) else { panic!("a settle") };
        let settlements: Vec<_> = settlements.map(Result::unwrap).collect();
        assert!(matches!(settlements[..], [ref only] if matches!(only.fate, Fate::Ack { .. })));
    }

    #[test]
    fn a_lease_is_known_by_its_token() {
        let session = Native { batch: 1, leases: true };
        let header = Header {
            len: 37,
            op: Op::Tasks as u8,
            flags: 0,
            route: Route { queue: HANDLE, id: 9 },
            count: 1,
        };
        let body = [&[1, 0, 0][..], &[3; 28], b"B\x01\0\0\0x"].concat();
        let reply = [&header.bytes()[..], &body].concat();
        assert!(session.reply(&reply[..52]).unwrap().is_none());
        let read = session.reply(&reply).unwrap().unwrap();
        assert_eq!(read, Reply { len: 53, to: To::Slot(9), receipt: &[3; 28] });
        let error = Header { op: Op::Error as u8, count: 0, ..header };
        assert!(session.reply(&[&error.bytes()[..], &body].concat()).is_err());
    }
}
