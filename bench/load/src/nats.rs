//! A work queue of NATS JetStream: a publish with its acknowledgement, a pull of one message, `+ACK`.
//!
//! Every slot has an inbox of its own, whose subscription says in a reply which slot it is for: a
//! stream and its consumer answer in any order.

use anyhow::{Context, Result, bail, ensure};
use tokio::net::TcpStream;

use crate::drive::{Arguments, Work};
use crate::speaker::{Reply, Speaker, Step, To, decimal, exchange, line};

const NEXT: &[u8] = b"$JS.API.CONSUMER.MSG.NEXT.TASKS.workers";

/// One connection.
pub(crate) struct Nats {
    inbox: String,
    settles: bool,
}

/// Introduces a connection, which is the `first` one to make the stream and its consumer.
pub(crate) async fn connect(
    socket: &mut TcpStream,
    arguments: &Arguments,
    first: bool,
) -> Result<Nats> {
    let inbox = format!("_INBOX.{:x}.", getrandom::u64().map_err(std::io::Error::other)?);
    let mut hello = b"CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true}\r\n".to_vec();
    for slot in 0..arguments.outstanding {
        hello.extend_from_slice(format!("SUB {inbox}{slot} {slot}\r\n").as_bytes());
    }
    hello.extend_from_slice(b"PING\r\n");
    exchange(socket, &hello, |reply| reply.ends_with(b"PONG\r\n")).await?;
    if first {
        let storage = if arguments.durable { "file" } else { "memory" };
        let stream = format!(
            r#"{{"name":"TASKS","subjects":["tasks"],"retention":"workqueue","storage":"{storage}"}}"#
        );
        ask_api(socket, &inbox, "STREAM.CREATE.TASKS", &stream).await?;
        let consumer = r#"{"stream_name":"TASKS","config":{"durable_name":"workers","ack_policy":"explicit","max_ack_pending":-1,"max_waiting":65536}}"#;
        ask_api(socket, &inbox, "CONSUMER.CREATE.TASKS.workers", consumer).await?;
    }
    Ok(Nats { inbox, settles: arguments.work == Work::Cycle })
}

async fn ask_api(socket: &mut TcpStream, inbox: &str, subject: &str, body: &str) -> Result<()> {
    let length = body.len();
    let request = format!("PUB $JS.API.{subject} {inbox}0 {length}\r\n{body}\r\n");
    let is_whole = |reply: &[u8]| {
        line(reply).is_some_and(|first| {
            let length = first.rsplit(|byte| *byte == b' ').next().map(str::from_utf8);
            let length = length.and_then(|length| length.ok()?.parse::<usize>().ok());
            length.is_none_or(|length| reply.len() >= first.len() + 2 + length + 2)
        })
    };
    let reply = exchange(socket, request.as_bytes(), is_whole).await?;
    let is_good = reply.starts_with(b"MSG") && memchr::memmem::find(&reply, b"\"error\"").is_none();
    ensure!(is_good, "NATS answers {}", reply.escape_ascii());
    Ok(())
}

impl Nats {
    fn publish(&self, subject: &[u8], slot: Option<usize>, body: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(b"PUB ");
        out.extend_from_slice(subject);
        if let Some(slot) = slot {
            out.push(b' ');
            out.extend_from_slice(self.inbox.as_bytes());
            decimal(slot, out);
        }
        out.push(b' ');
        decimal(body.len(), out);
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(body);
        out.extend_from_slice(b"\r\n");
    }
}

impl Speaker for Nats {
    fn ask(&mut self, slot: usize, ack_subject: &[u8], step: Step<'_>, out: &mut Vec<u8>) {
        match step {
            Step::Put(items, _) => {
                if !ack_subject.is_empty() {
                    // Nobody waits for it: it goes with the next request.
                    self.publish(ack_subject, None, b"+ACK", out);
                }
                self.publish(b"tasks", Some(slot), items.make(), out);
            }
            Step::Take(_) => self.publish(NEXT, Some(slot), b"", out),
            Step::Settle => self.publish(ack_subject, Some(slot), b"+ACK", out),
        }
    }

    fn reply<'a>(&self, inbound: &'a [u8]) -> Result<Option<Reply<'a>>> {
        let Some(first) = line(inbound) else { return Ok(None) };
        let head = first.len() + 2;
        if first == b"PING" || first.starts_with(b"INFO ") {
            return Ok(Some(Reply { len: head, to: To::Nobody, receipt: b"" }));
        }
        let words: Vec<&[u8]> = first.split(|byte| *byte == b' ').collect();
        let (slot, ack_subject, length) = match words.as_slice() {
            [b"MSG", _, slot, length] => (slot, b"".as_slice(), length),
            [b"MSG", _, slot, ack_subject, length] => (slot, *ack_subject, length),
            _ => bail!("NATS answers {}", inbound.escape_ascii()),
        };
        let slot = str::from_utf8(slot)?.parse().context("a slot")?;
        let len = head + str::from_utf8(length)?.parse::<usize>().context("a length")? + 2;
        let Some(body) = inbound.get(head..len) else { return Ok(None) };
        let is_error = ack_subject.is_empty() && body.starts_with(b"{\"error\"");
        ensure!(!is_error, "NATS answers {}", body.escape_ascii());
        Ok(Some(Reply { len, to: To::Slot(slot), receipt: ack_subject }))
    }

    fn settles(&self) -> bool {
        self.settles
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_names_its_slot_and_how_to_settle() {
        let nats = Nats { inbox: "_INBOX.".into(), settles: true };
        let reply = b"MSG tasks 7 $JS.ACK.1 2\r\nab\r\nMSG _INBOX.3 3 0\r\n\r\n";
        assert!(nats.reply(&reply[..28]).unwrap().is_none());
        let first = nats.reply(reply).unwrap().unwrap();
        assert_eq!(first, Reply { len: 29, to: To::Slot(7), receipt: b"$JS.ACK.1" });
        let second = nats.reply(&reply[29..]).unwrap().unwrap();
        assert_eq!(second, Reply { len: 20, to: To::Slot(3), receipt: b"" });
        assert_eq!(nats.reply(b"PING\r\n").unwrap().unwrap().to, To::Nobody);
        assert!(nats.reply(b"-ERR 'no'\r\n").is_err());
        assert!(nats.reply(b"MSG _INBOX.3 3 12\r\n{\"error\": 1}\r\n").is_err());
    }
}
