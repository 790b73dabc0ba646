//! What the journal keeps of a task beside its payload, as bytes and texts.
//!
//! `docs/journal-format.md` has the layout. Invariant: what cannot be read whole is refused.

use std::borrow::Cow;
use std::time::Duration;

use bytes::{Buf, BufMut};

use crate::queue::{Cause, Facts, Origin, TaskId, Token};

/// Longest reason of a failure that is kept, in bytes.
const REASON_LEN_MAX: usize = 1000;
const REFUSED: &str = "refused: ";

mod tag {
    pub(super) const ORIGIN: u8 = 1;
    pub(super) const HISTORY: u8 = 2;
    pub(super) const LAST: u8 = 3;
}

/// Why a task came back, as text.
pub(super) fn cause_text(cause: &Cause) -> Cow<'static, str> {
    match cause {
        Cause::Unread => "unread".into(),
        Cause::Crashed => "crashed".into(),
        Cause::Unanswered => "unanswered".into(),
        Cause::Overdue => "overdue".into(),
        Cause::Refused(reason) => {
            let end =
                (0..=REASON_LEN_MAX.min(reason.len())).rfind(|&at| reason.is_char_boundary(at));
            let reason = reason.get(..end.unwrap_or_default()).unwrap_or_default();
            format!("{REFUSED}{reason}").into()
        }
    }
}

/// Reads what [`cause_text`] wrote.
pub(super) fn cause_of(text: &str) -> Option<Cause> {
    Some(match text {
        "unread" => Cause::Unread,
        "crashed" => Cause::Crashed,
        "unanswered" => Cause::Unanswered,
        "overdue" => Cause::Overdue,
        other => Cause::Refused(other.strip_prefix(REFUSED)?.into()),
    })
}

/// A priority as bytes that compare as it does.
pub(super) fn priority_bytes(priority: i64) -> [u8; 8] {
    (priority.cast_unsigned() ^ (1 << 63)).to_be_bytes()
}

pub(super) fn priority_of(bytes: &[u8]) -> Option<i64> {
    let bytes = <[u8; 8]>::try_from(bytes).ok()?;
    Some((u64::from_be_bytes(bytes) ^ (1 << 63)).cast_signed())
}

/// What is known of a task and has no field of its own in a record.
pub(super) fn note(origin: Option<&Origin>, history: &[Cause], last: Option<Token>) -> Vec<u8> {
    let mut note = Vec::new();
    if let Some(Origin { queue, task, attempt, worker, waited, ran, history }) = origin {
        note.put_u8(tag::ORIGIN);
        put_text(queue, &mut note);
        note.put_u64_le(task.0);
        note.put_u32_le(*attempt);
        put_text(worker, &mut note);
        put_duration(*waited, &mut note);
        put_duration(*ran, &mut note);
        put_causes(history, &mut note);
    }
    if !history.is_empty() {
        note.put_u8(tag::HISTORY);
        put_causes(history, &mut note);
    }
    if let Some(Token { attempt, epoch, .. }) = last {
        note.put_u8(tag::LAST);
        note.put_u32_le(attempt);
        note.put_u64_le(epoch);
    }
    note
}

/// Reads what [`note`] wrote of `task` into `facts`; nothing if it is not whole.
pub(super) fn read_note(task: TaskId, mut note: &[u8], facts: &mut Facts) -> Option<()> {
    while !note.is_empty() {
        match note.try_get_u8().ok()? {
            tag::ORIGIN => facts.origin = Some(Box::new(origin(&mut note)?)),
            tag::HISTORY => facts.history = causes(&mut note)?,
            tag::LAST => {
                let attempt = note.try_get_u32_le().ok()?;
                facts.last = Some(Token { task, attempt, epoch: note.try_get_u64_le().ok()? });
            }
            _ => return None,
        }
    }
    Some(())
}

fn origin(note: &mut &[u8]) -> Option<Origin> {
    Some(Origin {
        queue: text(note)?.into(),
        task: TaskId(note.try_get_u64_le().ok()?),
        attempt: note.try_get_u32_le().ok()?,
        worker: text(note)?.into(),
        waited: duration(note)?,
        ran: duration(note)?,
        history: causes(note)?,
    })
}

fn put_text(text: &str, note: &mut Vec<u8>) {
    note.put_u32_le(u32::try_from(text.len()).unwrap_or_default());
    note.put_slice(text.as_bytes());
}

fn text<'n>(note: &mut &'n [u8]) -> Option<&'n str> {
    let len = note.try_get_u32_le().ok()?;
    let (text, rest) = note.split_at_checked(usize::try_from(len).ok()?)?;
    *note = rest;
    std::str::from_utf8(text).ok()
}

fn put_duration(duration: Duration, note: &mut Vec<u8>) {
    note.put_u64_le(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
}

fn duration(note: &mut &[u8]) -> Option<Duration> {
    note.try_get_u64_le().ok().map(Duration::from_nanos)
}

fn put_causes(causes: &[Cause], note: &mut Vec<u8>) {
    note.put_u32_le(u32::try_from(causes.len()).unwrap_or_default());
    for cause in causes {
        put_text(&cause_text(cause), note);
    }
}

fn causes(note: &mut &[u8]) -> Option<Vec<Cause>> {
    let count = note.try_get_u32_le().ok()?;
    (0..count).map(|_| cause_of(text(note)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn causes() -> Vec<Cause> {
        let refused = |reason: &str| Cause::Refused(reason.into());
        let plain = [Cause::Unread, Cause::Crashed, Cause::Unanswered, Cause::Overdue];
        plain.into_iter().chain([refused(""), refused("crashed"), refused("zu groß")]).collect()
    }

    #[test]
    fn a_note_is_read_as_it_was_written_and_no_part_of_it_is_one() {
        let origin = Origin {
            queue: "tasks".into(),
            task: TaskId(u64::MAX),
            attempt: 3,
            worker: "MainProcess at 127.0.0.1:1".into(),
            waited: Duration::from_millis(5),
            ran: Duration::from_secs(6),
            history: causes(),
        };
        let last = Token { task: TaskId(9), attempt: 2, epoch: u64::MAX };
        let facts = Facts {
            history: causes(),
            origin: Some(Box::new(origin.clone())),
            last: Some(last),
            ..Facts::default()
        };
        let bytes = note(Some(&origin), &facts.history, Some(last));
        let mut found = Facts::default();
        assert_eq!(read_note(TaskId(9), &bytes, &mut found), Some(()));
        assert_eq!(found, facts);
        assert_eq!(note(None, &[], None), []);
        let whole: Vec<_> = (1..bytes.len())
            .filter(|&cut| read_note(TaskId(9), &bytes[..cut], &mut Facts::default()).is_some())
            .collect();
        assert_eq!(whole.len(), 2, "only between two fields: {whole:?}");
    }

    #[test]
    fn priorities_compare_as_bytes() {
        let numbers = [i64::MIN, -1, 0, 1, i64::MAX];
        let bytes = numbers.map(priority_bytes);
        assert!(bytes.is_sorted());
        assert_eq!(bytes.map(|bytes| priority_of(&bytes).unwrap()), numbers);
        assert_eq!(priority_of(b"short"), None);
    }

    #[test]
    fn a_long_reason_is_cut_between_two_characters() {
        let text = cause_text(&Cause::Refused("ß".repeat(2000).into()));
        assert_eq!(text.len(), REFUSED.len() + REASON_LEN_MAX);
        assert!(matches!(cause_of(&text), Some(Cause::Refused(reason)) if reason.ends_with('ß')));
    }
}
