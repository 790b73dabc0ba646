//! The reply that tells of all references. It may be long, so it is made on a thread of its own, of a
//! page of facts at a time.

use manyhands::wire::control::Control;

use super::verbs::Classic;

/// What is told of a reference in a list of all, in bytes.
const REFERENCE_TOLD_BYTES: u64 = 160;
/// How much of what a reference is to is shown, in bytes, as CPython's server does.
const SHOWN_LEN_MAX: usize = 75;

/// What the answer to a control request takes if it is a list, in bytes, roughly.
pub(super) fn told_bytes(control: &Control, classic: &Classic) -> Option<u64> {
    match control {
        Control::DebugInfo => Some(classic.number_of_references() * REFERENCE_TOLD_BYTES),
        _ => None,
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
