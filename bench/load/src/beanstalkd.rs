//! beanstalkd's `put`, `reserve` and `delete`.

use anyhow::{Context, Result, bail};

use crate::speaker::{Reply, Speaker, Step, To, line};

/// One connection.
pub(crate) struct Beanstalkd;

impl Speaker for Beanstalkd {
    /// A batch is as many commands; they are answered one by one, so there is none.
    fn ask(&mut self, _: usize, id: &[u8], step: Step<'_>, out: &mut Vec<u8>) {
        match step {
            Step::Put(items, count) => {
                for _ in 0..count {
                    let item = items.make();
                    out.extend_from_slice(format!("put 0 0 600 {}\r\n", item.len()).as_bytes());
                    out.extend_from_slice(item);
                    out.extend_from_slice(b"\r\n");
                }
            }
            Step::Take(_) => out.extend_from_slice(b"reserve\r\n"),
            Step::Settle => out.extend_from_slice(&[b"delete ", id, b"\r\n"].concat()),
        }
    }

    fn reply<'a>(&self, inbound: &'a [u8]) -> Result<Option<Reply<'a>>> {
        let Some(first) = line(inbound) else { return Ok(None) };
        let head = first.len() + 2;
        let mut words = first.split(|byte| *byte == b' ');
        match (words.next(), words.next()) {
            (Some(b"INSERTED" | b"DELETED"), _) => {
                Ok(Some(Reply { len: head, to: To::Oldest, receipt: b"" }))
            }
            (Some(b"RESERVED"), Some(receipt)) => {
                let length = words.next().context("a job without a length")?;
                let len = head + str::from_utf8(length)?.parse::<usize>()? + 2;
                Ok((inbound.len() >= len).then_some(Reply { len, to: To::Oldest, receipt }))
            }
            _ => bail!("beanstalkd answers {}", first.escape_ascii()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_comes_with_its_number() {
        let reply = b"RESERVED 17 4\r\n\r\n\r\n\r\nDELETED\r\n";
        assert!(Beanstalkd.reply(&reply[..20]).unwrap().is_none());
        let first = Beanstalkd.reply(reply).unwrap().unwrap();
        assert_eq!(first, Reply { len: 21, to: To::Oldest, receipt: b"17" });
        assert_eq!(Beanstalkd.reply(&reply[21..]).unwrap().unwrap().len, 9);
        assert!(Beanstalkd.reply(b"NOT_FOUND\r\n").is_err());
    }
}
