//! How the frames of the native protocol say each [`Verb`].

use std::time::Duration;

use super::calls::Call;
use crate::verb::{Verb, piece_len};
use crate::wire::arguments::Wait;
use crate::wire::frame::Outbound;
use crate::wire::native::{Fate, Get, Request, Route, SessionLimits, Settlement, TooLong, Writer};
use crate::wire::pickle::Payload;

/// How many of a call's items go into its next request, as far as the server's limits tell.
pub(super) fn piece(call: &Call, limits: &SessionLimits) -> usize {
    match &call.verb {
        Verb::Put { .. } => 1,
        Verb::PutMany { items, .. } => {
            let rest = items.get(call.added..).unwrap_or_default();
            piece_len(rest, size(limits.batch_max), size(limits.frame_max) / 2)
        }
        _ => 0,
    }
}

fn size(limit: u32) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// Items of the call's next request.
fn items(call: &Call) -> &[Payload] {
    match &call.verb {
        Verb::Put { item, .. } => std::slice::from_ref(item),
        Verb::PutMany { items, .. } => {
            items.get(call.added..call.added + call.piece).unwrap_or_default()
        }
        _ => &[],
    }
}

/// Appends the next request of a call. `is_held` says that a plain `get` leases what it takes.
pub(super) fn push(
    call: &Call,
    is_held: bool,
    route: Route,
    out: &mut Outbound,
) -> Result<(), TooLong> {
    let request = match &call.verb {
        // A connection says nothing.
        Verb::Connect => return Ok(()),
        Verb::Put { wait, .. } | Verb::PutMany { wait, .. } if call.is_answer() => {
            return push_answers(call, *wait, route.id, out);
        }
        Verb::Put { item, terms, wait, numbered } => {
            let mut put = Request::begin_put(*wait, *numbered, route, out);
            put.item(item, terms.as_deref());
            return put.finish();
        }
        Verb::PutMany { wait, .. } => {
            let mut put = Request::begin_put(*wait, false, route, out);
            items(call).iter().for_each(|item| put.item(item, None));
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
            leased: *leased || is_held,
            // What is in hand is so for no longer than the session and the server last.
            hold: if *leased { *hold } else { Some(Duration::ZERO) },
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
        Verb::Revoke { task } => Request::Revoke { task: *task },
        Verb::Shutdown { immediate } => Request::Shutdown { immediate: *immediate },
        Verb::List { after } => Request::List { after: after.clone() },
        Verb::Drop { name, force } => Request::Drop { name: name.clone(), forced: *force },
        Verb::Configure { name, options } => {
            Request::Configure { name: name.clone(), options: options.clone() }
        }
    };
    request.push(route, out)
}

/// Appends the settlements of tasks in hand, of which the items are the results.
fn push_answers(call: &Call, wait: Wait, id: u32, out: &mut Outbound) -> Result<(), TooLong> {
    let answered = &call.claim.answered;
    let queue = answered.first().map_or(call.queue, |held| held.queue);
    let mut settle: Writer<'_> = Request::begin_settle(wait, Route { queue, id }, out);
    for (held, item) in answered.iter().zip(items(call)) {
        let fate = Fate::Done { result: Some(item.clone()) };
        settle.settlement(&Settlement { token: held.token, fate });
    }
    settle.finish()
}
