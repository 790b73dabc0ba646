//! Replies that tell of all queues or references. They may be long, so they are made on a thread of
//! their own, of a page of facts at a time.

use manyhands::wire::control::Control;
use manyhands::wire::reply::QueueInfo;

use super::verbs::Classic;
use crate::engine::{Engine, Snapshot};
use crate::frontend::lists::info;

/// What is told of a reference in a list of all, and of a queue, in bytes.
const REFERENCE_TOLD_BYTES: u64 = 160;
const QUEUE_TOLD_BYTES: u64 = 640;
/// How much of what a reference is to is shown, in bytes, as CPython's server does.
const SHOWN_LEN_MAX: usize = 75;

/// What the answer to a control request takes if it is a list, in bytes, roughly.
pub(super) fn told_bytes(control: &Control, classic: &Classic) -> Option<u64> {
    match control {
        Control::DebugInfo => Some(classic.number_of_references() * REFERENCE_TOLD_BYTES),
        Control::Queues | Control::ListQueues => {
            Some(classic.engine.number_of_listed() as u64 * QUEUE_TOLD_BYTES)
        }
        _ => None,
    }
}

/// Every queue that clients know by a name, sorted by it.
pub(super) fn queues(engine: &Engine) -> Vec<QueueInfo> {
    let mut snapshot = Snapshot::default();
    let mut infos = Vec::new();
    loop {
        let page = engine.next_queues(&mut snapshot);
        if page.is_empty() {
            return infos;
        }
        infos.extend(page.into_iter().map(info));
    }
}

/// A text about every reference, in the form of CPython's server.
pub(crate) fn debug_info(classic: &Classic) -> String {
    let mut last = 0;
    let mut lines = Vec::new();
    loop {
        let page = classic.references_after(&mut last);
        if page.is_empty() {
            return lines.join("\n");
        }
        lines.extend(page.into_iter().map(|stats| {
            let (ident, count) = (stats.ident, stats.count);
            let text = stats.queue.to_string();
            let shown = text.get(..SHOWN_LEN_MAX).unwrap_or(&text);
            format!("  {ident}:       refcount={count}\n    {shown}")
        }));
    }
}
