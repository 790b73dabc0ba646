//! Lists of Redis: `RPUSH` and `LPOP`, or the reliable queue of its documentation: `RPUSH`, `LMOVE` to a
//! list of what is in work, `LREM`.

use anyhow::{Result, bail};

use crate::drive::Work;
use crate::speaker::{Reply, Speaker, Step, To, decimal, line};

/// One connection. Its list of what is in work is its own, so `LREM` finds everything at once.
pub(crate) struct Redis {
    in_work: Vec<u8>,
    settles: bool,
}

impl Redis {
    pub(crate) fn new(connection: usize, work: Work) -> Self {
        let in_work = format!("in-work:{connection}").into_bytes();
        Self { in_work, settles: work == Work::Cycle }
    }
}

impl Speaker for Redis {
    fn ask(&mut self, _: usize, item: &[u8], step: Step<'_>, out: &mut Vec<u8>) {
        let in_work = self.in_work.as_slice();
        match step {
            Step::Put(items, count) => {
                number(b'*', 2 + count, out);
                argument(b"RPUSH", out);
                argument(b"tasks", out);
                (0..count).for_each(|_| argument(items.make(), out));
            }
            Step::Take(1) if self.settles => {
                words(&[b"LMOVE", b"tasks", in_work, b"LEFT", b"RIGHT"], out);
            }
            Step::Take(1) => words(&[b"LPOP", b"tasks"], out),
            Step::Take(count) => {
                words(&[b"LPOP", b"tasks", count.to_string().as_bytes()], out);
            }
            Step::Settle => words(&[b"LREM", in_work, b"1", item], out),
        }
    }

    fn reply<'a>(&self, inbound: &'a [u8]) -> Result<Option<Reply<'a>>> {
        let Some(first) = line(inbound) else { return Ok(None) };
        let head = first.len() + 2;
        match first.split_first() {
            // A list's length, or how many were removed.
            Some((b':', number)) if number != b"0" => {
                Ok(Some(Reply { len: head, to: To::Oldest, receipt: b"" }))
            }
            Some((b'$', _)) => {
                Ok(bulk(inbound)?.map(|(receipt, len)| Reply { len, to: To::Oldest, receipt }))
            }
            Some((b'*', count)) => {
                let mut len = head;
                for _ in 0..str::from_utf8(count)?.parse::<usize>()? {
                    let Some((_, more)) = bulk(inbound.get(len..).unwrap_or_default())? else {
                        return Ok(None);
                    };
                    len += more;
                }
                Ok(Some(Reply { len, to: To::Oldest, receipt: b"" }))
            }
            _ => bail!("Redis answers {}", first.escape_ascii()),
        }
    }

    fn settles(&self) -> bool {
        self.settles
    }
}

/// The text at the start of `inbound`, and how many bytes it takes there.
pub(crate) fn bulk(inbound: &[u8]) -> Result<Option<(&[u8], usize)>> {
    let Some(first) = line(inbound) else { return Ok(None) };
    let Some(length) = first.strip_prefix(b"$") else {
        bail!("Redis answers {}", first.escape_ascii())
    };
    let start = first.len() + 2;
    let end = start + str::from_utf8(length)?.parse::<usize>()?;
    Ok(inbound.get(..end + 2).and_then(|whole| whole.get(start..end)).map(|text| (text, end + 2)))
}

pub(crate) fn words(words: &[&[u8]], out: &mut Vec<u8>) {
    number(b'*', words.len(), out);
    words.iter().for_each(|word| argument(word, out));
}

fn argument(bytes: &[u8], out: &mut Vec<u8>) {
    number(b'$', bytes.len(), out);
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

fn number(kind: u8, number: usize, out: &mut Vec<u8>) {
    out.push(kind);
    decimal(number, out);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::speaker::Items;

    #[test]
    fn a_reply_is_whole_before_it_is_read() {
        let redis = Redis::new(0, Work::Cycle);
        let reply = b"$5\r\nab\r\nc\r\n:1\r\n";
        for part in 0..11 {
            assert!(redis.reply(&reply[..part]).unwrap().is_none(), "{part}");
        }
        let first = redis.reply(reply).unwrap().unwrap();
        assert_eq!(first, Reply { len: 11, to: To::Oldest, receipt: b"ab\r\nc" });
        assert_eq!(redis.reply(&reply[11..]).unwrap().unwrap().len, 4);
        let batch = b"*2\r\n$1\r\na\r\n$1\r\nb\r\n";
        assert!(redis.reply(&batch[..17]).unwrap().is_none());
        assert_eq!(redis.reply(batch).unwrap().unwrap().len, 18);
        assert!(redis.reply(b":0\r\n").is_err());
        assert!(redis.reply(b"-ERR no\r\n").is_err());
    }

    #[test]
    fn a_batch_is_one_command() {
        let (mut out, mut items) = (Vec::new(), Items::new(16).unwrap());
        Redis::new(0, Work::Cycle).ask(0, b"", Step::Put(&mut items, 2), &mut out);
        let first = b"*4\r\n$5\r\nRPUSH\r\n$5\r\ntasks\r\n$16\r\n0000000000000000\r\n";
        let second = b"$16\r\n0000000000000001\r\n";
        assert_eq!(out, [first.as_slice(), second].concat());
    }
}
