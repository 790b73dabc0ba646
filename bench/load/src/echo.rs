//! Frames that come back as they are: what the kernel and both event loops cost.

use anyhow::Result;

use crate::speaker::{Reply, Speaker, Step, To};

/// One connection.
pub(crate) struct Echo {
    payload: usize,
}

impl Echo {
    pub(crate) fn new(payload: usize) -> Self {
        Self { payload }
    }
}

impl Speaker for Echo {
    /// An item goes in and comes out with the put; to take is to exchange a header more.
    fn ask(&mut self, _: usize, _: &[u8], step: Step<'_>, out: &mut Vec<u8>) {
        let Step::Put(items, count) = step else { return out.extend_from_slice(&[0; 4]) };
        let length = u32::try_from(count * self.payload).unwrap_or(u32::MAX);
        out.extend_from_slice(&length.to_be_bytes());
        (0..count).for_each(|_| out.extend_from_slice(items.make()));
    }

    fn reply<'a>(&self, inbound: &'a [u8]) -> Result<Option<Reply<'a>>> {
        let Some(header) = inbound.first_chunk::<4>() else { return Ok(None) };
        let len = 4 + u32::from_be_bytes(*header) as usize;
        Ok((inbound.len() >= len).then_some(Reply { len, to: To::Oldest, receipt: b"" }))
    }

    fn settles(&self) -> bool {
        false
    }
}
