//! How the frames of the native protocol say each [`Verb`].

use crate::verb::Verb;
use crate::wire::frame::Outbound;
use crate::wire::native::{Get, Request, Route, TooLong};
use crate::wire::pickle::Payload;

/// Bytes of a frame beside its items: fields, terms, reasons.
const OVERHEAD_LEN: usize = 4 << 10;

/// How much of a frame's body `items_len` bytes of items may take.
pub(super) fn fits(items_len: usize, frame_max: u32) -> bool {
    items_len.saturating_add(OVERHEAD_LEN) <= usize::try_from(frame_max).unwrap_or(usize::MAX)
}

/// Appends the frame of a verb.
pub(super) fn push(verb: &Verb, route: Route, out: &mut Outbound) -> Result<(), TooLong> {
    let request = match verb {
        // A connection says nothing.
        Verb::Connect => return Ok(()),
        Verb::Put { item, terms, wait, numbered } => {
            let mut put = Request::begin_put(*wait, *numbered, route, out);
            put.item(item, terms.as_deref());
            return put.finish();
        }
        Verb::PutMany { items, wait } => {
            let mut put = Request::begin_put(*wait, false, route, out);
            items.iter().for_each(|item: &Payload| put.item(item, None));
            return put.finish();
        }
        Verb::Settle { settlements, wait } => {
            let mut settle = Request::begin_settle(*wait, route, out);
            settlements.iter().for_each(|settlement| settle.settlement(settlement));
            return settle.finish();
        }
        Verb::Open { name } => Request::Open { name: name.to_string() },
        Verb::Close => Request::Close,
        Verb::Get { wait, max, leased, hold, informed } => Request::Get(Get {
            wait: *wait,
            leased: *leased,
            hold: *hold,
            informed: *informed,
            max: u32::try_from(*max).unwrap_or(u32::MAX),
            bytes_max: None,
        }),
        Verb::Credit { ahead } => Request::Credit { hold: None, credit: *ahead, ends: false },
        Verb::TaskDone => Request::TaskDone { count: 1 },
        Verb::Join => Request::Join,
        Verb::Size | Verb::IsEmpty | Verb::IsFull => Request::Size,
        Verb::Peek(peek) => Request::Peek(*peek),
        Verb::Redrive { max, task } => Request::Redrive { max: *max, task: *task },
        Verb::Purge => Request::Purge,
        Verb::Shutdown { immediate } => Request::Shutdown { immediate: *immediate },
        Verb::List { after } => Request::List { after: after.clone() },
        Verb::Drop { name, force } => Request::Drop { name: name.clone(), forced: *force },
    };
    request.push(route, out)
}
