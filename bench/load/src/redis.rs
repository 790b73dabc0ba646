//! The reliable queue of Redis's own documentation: `RPUSH`, `LMOVE` to a list of what is in work, `LREM`.

use anyhow::{Result, bail};

use crate::speaker::{Reply, Speaker, Step, line};

/// One connection. Its list of what is in work is its own, so `LREM` finds everything at once.
pub(crate) struct Redis {
    in_work: Vec<u8>,
}

impl Redis {
    pub(crate) fn new(connection: usize) -> Self {
        Self { in_work: format!("in-work:{connection}").into_bytes() }
    }
}

impl Speaker for Redis {
    fn ask(&mut self, step: Step<'_>, out: &mut Vec<u8>) {
        let in_work = self.in_work.as_slice();
        match step {
            Step::Put(items, count) => {
                number(b'*', 2 + count, out);
                argument(b"RPUSH", out);
                argument(b"tasks", out);
                (0..count).for_each(|_| argument(items.make(), out));
            }
            Step::Take => words(&[b"LMOVE", b"tasks", in_work, b"LEFT", b"RIGHT"], out),
            Step::Settle(item) => words(&[b"LREM", in_work, b"1", item], out),
        }
    }

    fn reply<'a>(&self, inbound: &'a [u8]) -> Result<Option<Reply<'a>>> {
        let Some(first) = line(inbound) else { return Ok(None) };
        let head = first.len() + 2;
        let length = match first.split_first() {
            // A list's length, or how many were removed.
            Some((b':', number)) if number != b"0" => {
                return Ok(Some(Reply { len: head, receipt: b"" }));
            }
            Some((b'$', length)) => str::from_utf8(length)?.parse::<usize>(),
            _ => bail!("Redis answers {}", first.escape_ascii()),
        };
        let len = head + length? + 2;
        let receipt = inbound.get(head..len - 2);
        Ok(receipt.filter(|_| inbound.len() >= len).map(|receipt| Reply { len, receipt }))
    }
}

fn words(words: &[&[u8]], out: &mut Vec<u8>) {
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

fn decimal(number: usize, out: &mut Vec<u8>) {
    if number >= 10 {
        decimal(number / 10, out);
    }
    out.push(b"0123456789".get(number % 10).copied().unwrap_or(b'?'));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::speaker::Items;

    #[test]
    fn a_reply_is_whole_before_it_is_read() {
        let redis = Redis::new(0);
        let reply = b"$5\r\nab\r\nc\r\n:1\r\n";
        for part in 0..11 {
            assert!(redis.reply(&reply[..part]).unwrap().is_none(), "{part}");
        }
        let first = redis.reply(reply).unwrap().unwrap();
        assert_eq!(first, Reply { len: 11, receipt: b"ab\r\nc" });
        assert_eq!(redis.reply(&reply[11..]).unwrap().unwrap().len, 4);
        assert!(redis.reply(b":0\r\n").is_err());
        assert!(redis.reply(b"-ERR no\r\n").is_err());
    }

    #[test]
    fn a_batch_is_one_command() {
        let (mut out, mut items) = (Vec::new(), Items::new(16).unwrap());
        Redis::new(0).ask(Step::Put(&mut items, 2), &mut out);
        let first = b"*4\r\n$5\r\nRPUSH\r\n$5\r\ntasks\r\n$16\r\n0000000000000000\r\n";
        let second = b"$16\r\n0000000000000001\r\n";
        assert_eq!(out, [first.as_slice(), second].concat());
    }
}
