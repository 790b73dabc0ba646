//! A stream of Redis with one group of consumers: `XADD`, `XREADGROUP`, then `XACK` and `XDEL`.

use anyhow::{Context, Result, bail, ensure};
use tokio::net::TcpStream;

use crate::redis::{bulk, words};
use crate::speaker::{Reply, Speaker, Step, To, exchange, line};

/// One connection.
pub(crate) struct RedisStream;

/// Makes the stream and its group, unless they are there.
pub(crate) async fn create(socket: &mut TcpStream) -> Result<()> {
    let mut request = Vec::new();
    words(&[b"XGROUP", b"CREATE", b"tasks", b"workers", b"0", b"MKSTREAM"], &mut request);
    let reply = exchange(socket, &request, |reply| line(reply).is_some()).await?;
    let is_there = reply.starts_with(b"+OK") || reply.starts_with(b"-BUSYGROUP");
    ensure!(is_there, "Redis answers {}", reply.escape_ascii());
    Ok(())
}

impl Speaker for RedisStream {
    /// A batch would be as many commands; they are answered one by one, so there is none.
    fn ask(&mut self, _: usize, id: &[u8], step: Step<'_>, out: &mut Vec<u8>) {
        match step {
            Step::Put(items, _) => words(&[b"XADD", b"tasks", b"*", b"item", items.make()], out),
            Step::Take(_) => words(
                &[
                    b"XREADGROUP",
                    b"GROUP",
                    b"workers",
                    b"one",
                    b"COUNT",
                    b"1",
                    b"STREAMS",
                    b"tasks",
                    b">",
                ],
                out,
            ),
            Step::Settle => {
                words(&[b"XACK", b"tasks", b"workers", id], out);
                words(&[b"XDEL", b"tasks", id], out);
            }
        }
    }

    fn reply<'a>(&self, inbound: &'a [u8]) -> Result<Option<Reply<'a>>> {
        let Some(first) = line(inbound) else { return Ok(None) };
        match first.first() {
            Some(b'$') => Ok(bulk(inbound)?.map(|(_, len)| reply(len, b""))),
            // Of one settlement both.
            Some(b':') if first == b":1" => {
                Ok(inbound.starts_with(b":1\r\n:1\r\n").then_some(reply(8, b"")))
            }
            Some(b'*') if first == b"*1" => entry(inbound),
            _ => bail!("Redis answers {}", first.escape_ascii()),
        }
    }
}

fn reply(len: usize, receipt: &[u8]) -> Reply<'_> {
    Reply { len, to: To::Oldest, receipt }
}

/// One stream with one entry, whose ID is the receipt: `[[stream, [[ID, [field, item]]]]]`.
fn entry(inbound: &[u8]) -> Result<Option<Reply<'_>>> {
    let mut len = 0;
    let mut texts: [&[u8]; 4] = [b""; 4];
    let shape = [Some(1), Some(2), None, Some(1), Some(2), None, Some(2), None, None];
    let mut found = texts.iter_mut();
    for part in shape {
        let rest = inbound.get(len..).unwrap_or_default();
        let Some(first) = line(rest) else { return Ok(None) };
        if let Some(count) = part {
            let wanted = [b"*", count.to_string().as_bytes()].concat();
            ensure!(first == wanted, "Redis answers {}", first.escape_ascii());
            len += first.len() + 2;
            continue;
        }
        let Some((text, more)) = bulk(rest)? else { return Ok(None) };
        *found.next().context("four texts")? = text;
        len += more;
    }
    let [_, id, _, _] = texts;
    Ok(Some(reply(len, id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_comes_with_its_id() {
        let inbound = b"*1\r\n*2\r\n$5\r\ntasks\r\n*1\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$4\r\nitem\r\n$2\r\nab\r\n:1\r\n:1\r\n";
        let whole = inbound.len() - 8;
        for part in 0..whole {
            assert!(RedisStream.reply(&inbound[..part]).unwrap().is_none(), "{part}");
        }
        assert_eq!(RedisStream.reply(inbound).unwrap().unwrap(), reply(whole, b"1-0"));
        assert!(RedisStream.reply(b":1\r\n:").unwrap().is_none());
        assert_eq!(RedisStream.reply(b":1\r\n:1\r\n").unwrap().unwrap().len, 8);
        assert!(RedisStream.reply(b"*-1\r\n").is_err());
    }
}
