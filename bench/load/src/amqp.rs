//! A quorum queue of RabbitMQ over AMQP 0-9-1: a publish with its confirmation, `basic.get`, `basic.ack`.
//!
//! Every slot has a channel of its own, which says in a reply which slot it is for. `basic.ack` has no
//! reply, so it goes with the slot's next publish.

use anyhow::{Context, Result, bail, ensure};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::drive::{Arguments, Work};
use crate::speaker::{Reply, Speaker, Step, To, exchange};

const QUEUE: &[u8] = b"tasks";
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
/// Type, channel and length before a frame's content.
const FRAME_HEADER_LEN: usize = 7;
const FRAME_END: u8 = 0xce;
/// Bytes of a frame's content, which every server allows.
const CONTENT_MAX: usize = 131_072 - 8;

/// Class and method.
type Method = [u16; 2];
const START_OK: Method = [10, 11];
const TUNE_OK: Method = [10, 31];
const OPEN: Method = [10, 40];
const OPEN_OK: Method = [10, 41];
const CHANNEL_OPEN: Method = [20, 10];
const CHANNEL_OPEN_OK: Method = [20, 11];
const DECLARE: Method = [50, 10];
const DECLARE_OK: Method = [50, 11];
const DELETE: Method = [50, 40];
const DELETE_OK: Method = [50, 41];
const PUBLISH: Method = [60, 40];
const GET: Method = [60, 70];
const GET_OK: Method = [60, 71];
const ACK: Method = [60, 80];
const CONFIRM: Method = [85, 10];
const CONFIRM_OK: Method = [85, 11];

/// One connection.
pub(crate) struct Amqp {
    acks: bool,
}

/// Logs in and opens a channel for each slot; the `first` connection makes the queue.
pub(crate) async fn connect(
    socket: &mut TcpStream,
    arguments: &Arguments,
    first: bool,
) -> Result<Amqp> {
    exchange(socket, b"AMQP\0\0\x09\x01", |reply| frame(reply).is_ok_and(|f| f.is_some())).await?;
    let login = [b"\0\0\0\0".as_slice(), b"\x05PLAIN", b"\0\0\0\x0c\0guest\0guest", b"\x05en_US"];
    call(socket, 0, START_OK, &login.concat(), [10, 30]).await?;
    let mut out = Vec::new();
    // As many channels as there can be, frames of the usual length, and no heartbeats.
    let tuning = [2047_u16.to_be_bytes().as_slice(), &131_072_u32.to_be_bytes(), &[0, 0]].concat();
    method(0, TUNE_OK, &tuning, &mut out);
    socket.write_all(&out).await?;
    call(socket, 0, OPEN, b"\x01/\0\0", OPEN_OK).await?;
    for slot in 0..arguments.outstanding {
        let channel = channel(slot);
        call(socket, channel, CHANNEL_OPEN, b"\0", CHANNEL_OPEN_OK).await?;
        if first && slot == 0 {
            if !arguments.keep {
                let delete = [b"\0\0", short(QUEUE).as_slice(), b"\0"].concat();
                call(socket, channel, DELETE, &delete, DELETE_OK).await?;
            }
            let kind = [short(b"x-queue-type").as_slice(), b"S\0\0\0\x06quorum"].concat();
            let table = [&u32::try_from(kind.len())?.to_be_bytes(), kind.as_slice()].concat();
            let durable = b"\x02";
            let declare = [b"\0\0", short(QUEUE).as_slice(), durable, &table].concat();
            call(socket, channel, DECLARE, &declare, DECLARE_OK).await?;
        }
        call(socket, channel, CONFIRM, b"\0", CONFIRM_OK).await?;
    }
    Ok(Amqp { acks: arguments.work == Work::Cycle })
}

/// Makes a call that is answered by `answer`.
async fn call(
    socket: &mut TcpStream,
    channel: u16,
    name: Method,
    arguments: &[u8],
    answer: Method,
) -> Result<()> {
    let mut out = Vec::new();
    method(channel, name, arguments, &mut out);
    let reply = exchange(socket, &out, |reply| frame(reply).is_ok_and(|f| f.is_some())).await?;
    let content = frame(&reply)?.context("a frame")?.content;
    ensure!(name_of(content) == Some(answer), "RabbitMQ answers {}", content.escape_ascii());
    Ok(())
}

impl Speaker for Amqp {
    fn ask(&mut self, slot: usize, tag: &[u8], step: Step<'_>, out: &mut Vec<u8>) {
        let channel = channel(slot);
        match step {
            Step::Put(items, _) => {
                if self.acks && !tag.is_empty() {
                    method(channel, ACK, &[tag, b"\0"].concat(), out);
                }
                let publish = [b"\0\0\0", short(QUEUE).as_slice(), b"\0"].concat();
                method(channel, PUBLISH, &publish, out);
                let item = items.make();
                let persistent = b"\x10\0\x02";
                let size = (item.len() as u64).to_be_bytes();
                push(HEADER, channel, &[b"\0\x3c\0\0", size.as_slice(), persistent].concat(), out);
                item.chunks(CONTENT_MAX).for_each(|part| push(BODY, channel, part, out));
            }
            Step::Take(_) => {
                let no_ack = u8::from(!self.acks);
                method(channel, GET, &[b"\0\0", short(QUEUE).as_slice(), &[no_ack]].concat(), out);
            }
            Step::Settle => {}
        }
    }

    fn reply<'a>(&self, inbound: &'a [u8]) -> Result<Option<Reply<'a>>> {
        let Some(Frame { kind, channel, content, len }) = frame(inbound)? else { return Ok(None) };
        if kind == HEARTBEAT {
            return Ok(Some(Reply { len, to: To::Nobody, receipt: b"" }));
        }
        let to = To::Slot(usize::from(channel).wrapping_sub(1));
        match name_of(content) {
            Some(ACK) => Ok(Some(Reply { len, to, receipt: b"" })),
            Some(GET_OK) => {
                let receipt = content.get(4..12).context("a message without a tag")?;
                let body = body_len(inbound.get(len..).unwrap_or_default(), channel)?;
                Ok(body.map(|body| Reply { len: len + body, to, receipt }))
            }
            _ => bail!("RabbitMQ answers {}", content.escape_ascii()),
        }
    }

    fn settles(&self) -> bool {
        false
    }
}

/// Bytes that a message takes after its method, once all of it has come: a header and its parts.
fn body_len(inbound: &[u8], of: u16) -> Result<Option<usize>> {
    let Some(header) = frame(inbound)? else { return Ok(None) };
    ensure!(header.kind == HEADER && header.channel == of, "a message without its header");
    let size = header.content.get(4..).and_then(|rest| rest.first_chunk()).context("a size")?;
    let (mut left, mut len) = (u64::from_be_bytes(*size), header.len);
    while left > 0 {
        let Some(part) = frame(inbound.get(len..).unwrap_or_default())? else { return Ok(None) };
        ensure!(part.kind == BODY && part.channel == of, "a message that is interrupted");
        left = left.saturating_sub(part.content.len() as u64);
        len += part.len;
    }
    Ok(Some(len))
}

struct Frame<'a> {
    kind: u8,
    channel: u16,
    content: &'a [u8],
    len: usize,
}

/// The frame at the start of `inbound`, once all of it has come.
fn frame(inbound: &[u8]) -> Result<Option<Frame<'_>>> {
    let Some([kind, c1, c2, l1, l2, l3, l4]) = inbound.first_chunk::<FRAME_HEADER_LEN>() else {
        return Ok(None);
    };
    let end = FRAME_HEADER_LEN + u32::from_be_bytes([*l1, *l2, *l3, *l4]) as usize;
    let Some(last) = inbound.get(end) else { return Ok(None) };
    ensure!(*last == FRAME_END, "RabbitMQ answers {}", inbound.escape_ascii());
    let content = inbound.get(FRAME_HEADER_LEN..end).unwrap_or_default();
    Ok(Some(Frame { kind: *kind, channel: u16::from_be_bytes([*c1, *c2]), content, len: end + 1 }))
}

fn name_of(content: &[u8]) -> Option<Method> {
    let [a, b, c, d] = *content.first_chunk()?;
    Some([u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])])
}

fn method(channel: u16, [class, name]: Method, arguments: &[u8], out: &mut Vec<u8>) {
    let content = [&class.to_be_bytes(), name.to_be_bytes().as_slice(), arguments].concat();
    push(METHOD, channel, &content, out);
}

fn push(kind: u8, channel: u16, content: &[u8], out: &mut Vec<u8>) {
    out.push(kind);
    out.extend_from_slice(&channel.to_be_bytes());
    out.extend_from_slice(&u32::try_from(content.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(content);
    out.push(FRAME_END);
}

fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap_or(u8::MAX)], text].concat()
}

/// Channel 0 is the connection itself.
fn channel(slot: usize) -> u16 {
    u16::try_from(slot + 1).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::speaker::Items;

    #[test]
    fn a_message_comes_with_its_tag_once_all_of_it_is_there() {
        let amqp = Amqp { acks: true };
        let mut inbound = Vec::new();
        method(3, GET_OK, b"\0\0\0\0\0\0\0\x09\0\0\x05tasks\0\0\0\0", &mut inbound);
        push(HEADER, 3, b"\0\x3c\0\0\0\0\0\0\0\0\0\x03\x10\0\x02", &mut inbound);
        push(BODY, 3, b"ab", &mut inbound);
        push(BODY, 3, b"c", &mut inbound);
        for part in 0..inbound.len() {
            assert!(amqp.reply(&inbound[..part]).unwrap().is_none(), "{part}");
        }
        let len = inbound.len();
        let receipt = b"\0\0\0\0\0\0\0\x09".as_slice();
        assert_eq!(amqp.reply(&inbound).unwrap().unwrap(), Reply { len, to: To::Slot(2), receipt });
    }

    #[test]
    fn an_item_is_put_in_frames_that_the_server_allows() {
        let (mut out, mut items) = (Vec::new(), Items::new(CONTENT_MAX + 1).unwrap());
        Amqp { acks: true }.ask(0, b"\0\0\0\0\0\0\0\x09", Step::Put(&mut items, 1), &mut out);
        let (mut kinds, mut at) = (Vec::new(), 0);
        while let Some(frame) = frame(&out[at..]).unwrap() {
            kinds.push((frame.kind, frame.channel));
            at += frame.len;
        }
        assert_eq!(kinds, [(METHOD, 1), (METHOD, 1), (HEADER, 1), (BODY, 1), (BODY, 1)]);
        assert_eq!(at, out.len());
    }
}
