//! From changes of queues to records of the journal, and what is known of a task to bytes and back.
//!
//! `docs/journal-format.md` has the layout. Invariants: each kind of change is told apart in one
//! place, [`RecordWriter::write`]; what cannot be read whole is refused.

use std::borrow::Cow;
use std::time::Duration;

use bytes::{Buf, BufMut};
use hashbrown::HashMap;
use manyhands::wire::pickle::Payload;

use super::{QueueLog, Stored};
use crate::clock::Clock;
use crate::engine::{Hosted, QueueId};
use crate::journal::{Body, JournalError, OpenFrame, Record, TaskOptions};
use crate::queue::{Cause, Change, Counts, Facts, Failed, Origin, TaskId, Terms, Time, Token};

/// Most that the record of a queue takes, in bytes: its name and settings are bounded.
const DECLARED_BYTES: usize = 2048;
/// Most that any other record takes beside texts and payloads, in bytes; that of a put with terms more.
const RECORD_BYTES: usize = 48;
const TERMS_BYTES: usize = 96;
/// Longest reason of a failure that is kept, in bytes.
const REASON_LEN_MAX: usize = 1000;
const REFUSED: &str = "refused: ";
/// Begins the line with who had the task.
const WORKER: &str = "with ";

mod tag {
    pub(super) const ORIGIN: u8 = 1;
    pub(super) const HISTORY: u8 = 2;
    pub(super) const LAST: u8 = 3;
}

/// Writes the records of one step.
pub(super) struct RecordWriter<'s, 'f> {
    queues: &'s mut HashMap<QueueId, Hosted>,
    clock: &'s Clock,
    now: Time,
    frame: &'s mut OpenFrame<'f>,
    moved: &'s mut Option<Vec<(QueueId, TaskId)>>,
    /// Tasks that were given up and are not in their dead-letter queue yet.
    dying: Vec<Dying>,
}

struct Dying {
    queue: QueueId,
    task: TaskId,
    attempt: Failed,
    stored: Option<Stored>,
}

/// Most that the records of a change take, in bytes.
pub(in crate::engine) fn bytes_max(change: &Change) -> usize {
    RECORD_BYTES
        + match change {
            Change::Put { payload, terms, .. } => {
                let terms = terms.as_deref().map_or(0, |terms| {
                    let key = terms.key.as_ref().map_or(0, |key| key.len());
                    TERMS_BYTES + key + encode_note(terms.origin.as_deref(), &[], None).len()
                });
                payload.bytes.len() + terms
            }
            Change::Returned { attempt, .. } | Change::Dead { attempt, .. } => {
                2 * RECORD_BYTES + attempt_text(attempt).len()
            }
            Change::Seen { key } => key.len(),
            // Another record says how long it lasts.
            Change::Redriven { .. } => RECORD_BYTES,
            Change::Declared(_) => DECLARED_BYTES,
            // Each is a number of up to ten bytes.
            Change::Cleared { kept, .. } => DECLARED_BYTES + 10 * kept.len(),
            _ => 0,
        }
}

impl<'s, 'f> RecordWriter<'s, 'f> {
    pub(super) fn new(
        queues: &'s mut HashMap<QueueId, Hosted>,
        clock: &'s Clock,
        now: Time,
        frame: &'s mut OpenFrame<'f>,
        moved: &'s mut Option<Vec<(QueueId, TaskId)>>,
    ) -> Self {
        Self { queues, clock, now, frame, moved, dying: Vec::new() }
    }

    pub(super) fn write(&mut self, queue: QueueId, change: Change) {
        match change {
            Change::Put { task, payload, terms } => {
                self.put(queue, task, &payload, terms.as_deref());
            }
            Change::Seen { .. } if planted!(KeyNotKept) => {}
            Change::Seen { key } => self.see(queue, &key),
            Change::Redriven { letter, task } => self.redrive(letter, queue, task),
            Change::Declared(counts) => self.declare(queue, counts),
            Change::Dropped => self.push(&Record::Removed { queue }),
            Change::Cleared { counts, kept } => self.clear(queue, counts, kept),
            Change::Leased { token, hold } => {
                self.push(&leased(queue, token, hold.unwrap_or_default()));
            }
            Change::Extended { token, hold } => self.push(&leased(queue, token, hold)),
            Change::Acked { task, .. }
                if planted!(AckBesideCheckpointLost) && self.moved.is_some() =>
            {
                self.forget(queue, task);
            }
            Change::Acked { task, attempt } => {
                let stored = self.forget(queue, task);
                self.unpin(stored);
                self.push(&Record::Ack { queue, task: task.0, attempt, result: None });
            }
            Change::Settled { token } => self.push(&settled(queue, token)),
            Change::Expired { .. } if planted!(ExpiryNotKept) => {}
            Change::Expired { task } => {
                let stored = self.forget(queue, task);
                self.unpin(stored);
                self.push(&Record::Expired { queue, task: task.0 });
            }
            Change::Turned { task, turned } => self.turn(queue, task, turned),
            Change::Returned { task, failures, not_before, attempt } => {
                let not_before = if planted!(NackDelayForgotten) { None } else { not_before };
                let not_before = not_before.map(|at| self.clock.unix_millis(at));
                let (cause, task, attempt) = (&attempt_text(&attempt), task.0, failures + 1);
                self.push(&Record::Returned { queue, task, attempt, not_before, cause });
            }
            Change::Dead { task, attempt } => {
                let stored = self.forget(queue, task);
                self.dying.push(Dying { queue, task, attempt, stored });
            }
            Change::Done(_) if planted!(DoneNotKept) => {}
            Change::Done(tasks) => self.push(&Record::Done { queue, tasks }),
            Change::ShutDown { .. } => {}
        }
    }

    fn push(&mut self, record: &Record<'_>) {
        self.frame.push(record);
    }

    /// This frame has the last records of a queue.
    pub(super) fn advance_last(&mut self, queue: QueueId) {
        let lsn = self.frame.lsn();
        if let Some(queue_log) = self.queue_log(queue) {
            queue_log.last = lsn;
        }
    }

    fn queue_log(&mut self, queue: QueueId) -> Option<&mut QueueLog> {
        self.queues.get_mut(&queue)?.queue_log.as_deref_mut()
    }

    fn declare(&mut self, queue: QueueId, Counts { next_task, unfinished }: Counts) {
        let Some(hosted) = self.queues.get(&queue) else { return };
        let Some(name) = hosted.name.as_deref() else { return };
        let (settings, next_task) = (hosted.queue.options().settings(), next_task.0);
        let settings = &settings;
        self.frame.push(&Record::Queue { queue, name, settings, next_task, unfinished });
    }

    fn forget(&mut self, queue: QueueId, task: TaskId) -> Option<Stored> {
        self.queue_log(queue)?.ledger.remove(task)
    }

    fn unpin(&mut self, stored: Option<Stored>) {
        self.frame.unpin(stored.map_or(0, |stored| stored.location.len.into()));
    }

    fn put(&mut self, queue: QueueId, task: TaskId, payload: &Payload, terms: Option<&Terms>) {
        if let Some(dying) = self.died(terms) {
            return self.bury(dying, queue, task);
        }
        let Some(Hosted { queue: to, queue_log: Some(queue_log), .. }) =
            self.queues.get_mut(&queue)
        else {
            return;
        };
        let options = to.options();
        let from_now = |time| self.clock.unix_millis(self.now + time);
        let note = encode_note(terms.and_then(|terms| terms.origin.as_deref()), &[], None);
        let priority = terms.and_then(|terms| terms.priority).map(priority_bytes);
        let put = Record::Put {
            queue,
            task: task.0,
            options: TaskOptions {
                priority: priority.as_ref().map(<[u8; 8]>::as_slice),
                not_before: terms.and_then(|terms| terms.delay).map(from_now),
                expires: terms.and_then(|terms| terms.expires).or(options.expires).map(from_now),
                key: terms.and_then(|terms| terms.key.as_deref()),
                note: &note,
                ..TaskOptions::default()
            },
            body: Body::from(payload),
        };
        if let Some(location) = self.frame.push(&put) {
            let Payload { codec, prelude_len, .. } = *payload;
            queue_log.enter(task, Stored { location, codec, prelude_len }, self.frame);
        }
    }

    fn see(&mut self, queue: QueueId, key: &[u8]) {
        let Some(hosted) = self.queues.get(&queue) else { return };
        let until = self.clock.unix_millis(self.now + hosted.queue.options().dedup);
        self.frame.push(&Record::Seen { queue, key, until });
    }

    /// The task whose dead letter this put is.
    fn died(&mut self, terms: Option<&Terms>) -> Option<Dying> {
        // A notice of it has the same origin, and no history.
        let origin = terms?.origin.as_ref().filter(|origin| !origin.history.is_empty())?;
        let at = self.dying.iter().position(|dying| {
            let name = self.queues.get(&dying.queue).and_then(|hosted| hosted.name.as_ref());
            dying.task == origin.task && name == Some(&origin.queue)
        })?;
        Some(self.dying.swap_remove(at))
    }

    fn bury(&mut self, dying: Dying, to_queue: QueueId, to_task: TaskId) {
        let cause = attempt_text(&dying.attempt);
        self.frame.push(&Record::Dead {
            queue: dying.queue,
            task: dying.task.0,
            to_queue,
            to_task: to_task.0,
            cause: &cause,
        });
        self.enter_moved(to_queue, to_task, dying.stored);
        self.last_anew(to_queue, to_task);
    }

    fn redrive(&mut self, (from, letter): (QueueId, TaskId), to_queue: QueueId, to_task: TaskId) {
        let stored = self.forget(from, letter);
        let (task, to) = (letter.0, to_task.0);
        self.frame.push(&Record::Redriven { queue: from, task, to_queue, to_task: to });
        self.enter_moved(to_queue, to_task, stored);
        self.last_anew(to_queue, to_task);
        self.advance_last(from);
    }

    /// A task is new to this queue, and lasts as long as any other that is put there.
    fn last_anew(&mut self, queue: QueueId, task: TaskId) {
        let expires = self.queues.get(&queue).and_then(|to| to.queue.options().expires);
        if let Some(expires) = expires {
            let until = self.clock.unix_millis(self.now + expires);
            self.frame.push(&Record::Lasts { queue, task: task.0, until });
        }
    }

    fn turn(&mut self, queue: QueueId, task: TaskId, turned: TaskId) {
        let stored = self.forget(queue, task);
        self.frame.push(&Record::Turned { queue, task: task.0, turned: turned.0 });
        self.enter_moved(queue, turned, stored);
    }

    /// A task is now here, with the body where it was.
    fn enter_moved(&mut self, queue: QueueId, task: TaskId, stored: Option<Stored>) {
        let queue_log =
            self.queues.get_mut(&queue).and_then(|hosted| hosted.queue_log.as_deref_mut());
        if let Some((queue_log, stored)) = queue_log.zip(stored) {
            queue_log.enter(task, stored, self.frame);
        }
        if let Some(moved) = self.moved {
            moved.push((queue, task));
        }
    }

    fn clear(&mut self, queue: QueueId, counts: Counts, kept: Vec<TaskId>) {
        let kept = if planted!(PurgeForgetsLeased) { Vec::new() } else { kept };
        let before = counts.next_task;
        let stays = kept.iter().map(|task| task.0).collect();
        self.frame.push(&Record::Purged { queue, before: before.0, kept: stays });
        if let Some(queue_log) = self.queue_log(queue) {
            let gone = queue_log.ledger.purge_at_once(before, kept);
            self.frame.unpin(gone);
        }
        // How many of those that are gone were done before, only the count itself can say.
        self.declare(queue, counts);
    }

    /// Tasks whose dead letters are not kept.
    pub(super) fn finish(mut self) {
        for Dying { queue, task, stored, .. } in std::mem::take(&mut self.dying) {
            self.unpin(stored);
            self.frame.push(&Record::Expired { queue, task: task.0 });
        }
    }
}

/// The record of a token that settled its task.
pub(super) fn settled(queue: QueueId, token: Token) -> Record<'static> {
    let Token { task: TaskId(task), attempt, lease } = token;
    Record::Settled { queue, task, attempt, lease }
}

/// Tells the records that say what is known of a live task.
pub(super) fn tell_task(
    (queue, task, stored): (QueueId, TaskId, Stored),
    facts: Option<&Facts>,
    clock: &Clock,
    write: &mut dyn FnMut(&Record<'_>) -> Result<(), JournalError>,
) -> Result<(), JournalError> {
    let facts = if planted!(CheckpointWithoutFacts) { None } else { facts };
    let Some(facts) = facts else {
        return write(&stored.live_record(queue, task, TaskOptions::default()));
    };
    let unix = |time: Option<Time>| time.map(|time| clock.unix_millis(time));
    let priority = facts.priority.map(priority_bytes);
    let options = TaskOptions {
        priority: priority.as_ref().map(<[u8; 8]>::as_slice),
        not_before: unix(facts.not_before),
        expires: unix(facts.expires),
        key: facts.key.as_deref(),
        attempt: facts.failures,
        note: &encode_note(facts.origin.as_deref(), &facts.history, facts.last),
    };
    write(&stored.live_record(queue, task, options))?;
    let Some(lease) = facts.lease else { return Ok(()) };
    write(&leased(queue, lease.token, lease.hold))
}

fn leased(queue: QueueId, token: Token, hold: Duration) -> Record<'static> {
    Record::Leased {
        queue,
        task: token.task.0,
        attempt: token.attempt,
        lease: token.lease,
        hold: u64::try_from(hold.as_millis()).unwrap_or(u64::MAX),
    }
}

// ---- what is known of a task, as bytes

/// Why a task came back, as text, after a line with who had it if that is known.
pub(super) fn attempt_text(Failed { cause, worker }: &Failed) -> Cow<'static, str> {
    let cause = cause_text(cause);
    match worker {
        Some(worker) => format!("{WORKER}{}\n{cause}", worker.replace('\n', " ")).into(),
        None => cause,
    }
}

/// Reads what [`attempt_text`] wrote.
pub(super) fn attempt_of(text: &str) -> Option<Failed> {
    let Some((worker, cause)) = text.strip_prefix(WORKER).and_then(|it| it.split_once('\n')) else {
        return cause_of(text).map(Failed::from);
    };
    Some(Failed { cause: cause_of(cause)?, worker: Some(worker.into()) })
}

fn cause_text(cause: &Cause) -> Cow<'static, str> {
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
fn cause_of(text: &str) -> Option<Cause> {
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
pub(super) fn encode_note(
    origin: Option<&Origin>,
    history: &[Failed],
    last: Option<Token>,
) -> Vec<u8> {
    let mut note = Vec::new();
    if let Some(Origin { queue, task, attempt, worker, waited, ran, history }) = origin {
        note.put_u8(tag::ORIGIN);
        put_text(queue, &mut note);
        note.put_u64_le(task.0);
        note.put_u32_le(*attempt);
        put_text(worker, &mut note);
        put_duration(*waited, &mut note);
        put_duration(*ran, &mut note);
        put_attempts(history, &mut note);
    }
    if !history.is_empty() {
        note.put_u8(tag::HISTORY);
        put_attempts(history, &mut note);
    }
    if let Some(Token { attempt, lease, .. }) = last {
        note.put_u8(tag::LAST);
        note.put_u32_le(attempt);
        note.put_u64_le(lease);
    }
    note
}

/// Reads what [`encode_note`] wrote of `task` into `facts`; nothing if it is not whole.
pub(super) fn decode_note(task: TaskId, mut note: &[u8], facts: &mut Facts) -> Option<()> {
    while !note.is_empty() {
        match note.try_get_u8().ok()? {
            tag::ORIGIN => facts.origin = Some(Box::new(origin(&mut note)?)),
            tag::HISTORY => facts.history = attempts(&mut note)?,
            tag::LAST => {
                let attempt = note.try_get_u32_le().ok()?;
                facts.last = Some(Token { task, attempt, lease: note.try_get_u64_le().ok()? });
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
        history: attempts(note)?,
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

fn put_attempts(attempts: &[Failed], note: &mut Vec<u8>) {
    note.put_u32_le(u32::try_from(attempts.len()).unwrap_or_default());
    for attempt in attempts {
        put_text(&attempt_text(attempt), note);
    }
}

fn attempts(note: &mut &[u8]) -> Option<Vec<Failed>> {
    let count = note.try_get_u32_le().ok()?;
    (0..count).map(|_| attempt_of(text(note)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::ATTEMPT_BYTES;
    use super::*;

    /// What a frame takes beside its records, in bytes, with the gap to the next one.
    const FRAME_BYTES: usize = 48 + 8;

    fn causes() -> Vec<Cause> {
        let refused = |reason: &str| Cause::Refused(reason.into());
        let plain = [Cause::Unread, Cause::Crashed, Cause::Unanswered, Cause::Overdue];
        plain.into_iter().chain([refused(""), refused("crashed"), refused("zu groß")]).collect()
    }

    fn failures() -> Vec<Failed> {
        let workers = [None, Some("MainProcess at 127.0.0.1:1"), Some(""), Some("with a\tb: c")];
        let of = |worker: Option<&str>| {
            let worker = worker.map(std::sync::Arc::from);
            causes().into_iter().map(move |cause| Failed { cause, worker: worker.clone() })
        };
        workers.into_iter().flat_map(of).collect()
    }

    #[test]
    fn a_worker_with_a_line_of_its_own_in_its_name_is_no_reason() {
        let worker = Some("a\nrefused: b".into());
        let text = attempt_text(&Failed { cause: Cause::Crashed, worker }).into_owned();
        let found = attempt_of(&text).unwrap();
        assert_eq!((found.cause, found.worker.as_deref()), (Cause::Crashed, Some("a refused: b")));
        assert_eq!(attempt_of("crashed"), Some(Cause::Crashed.into()), "as it was once written");
        assert_eq!(attempt_of("with a crashed"), None);
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
            history: failures(),
        };
        let last = Token { task: TaskId(9), attempt: 2, lease: u64::MAX };
        let facts = Facts {
            history: failures(),
            origin: Some(Box::new(origin.clone())),
            last: Some(last),
            ..Facts::default()
        };
        let bytes = encode_note(Some(&origin), &facts.history, Some(last));
        let mut found = Facts::default();
        assert_eq!(decode_note(TaskId(9), &bytes, &mut found), Some(()));
        assert_eq!(found, facts);
        assert_eq!(encode_note(None, &[], None), [0u8; 0]);
        let whole: Vec<_> = (1..bytes.len())
            .filter(|&cut| decode_note(TaskId(9), &bytes[..cut], &mut Facts::default()).is_some())
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

    #[test]
    fn what_is_kept_free_for_an_attempt_is_enough_for_all_that_it_may_say() {
        let (name, address) = ("\u{1f980}".repeat(200), "x".repeat(108));
        let worker = Some(format!("{name} at {address}").into());
        let attempt = Failed { cause: Cause::Refused("x".repeat(2000).into()), worker };
        let token = Token { task: TaskId(u64::MAX), attempt: u32::MAX, lease: u64::MAX };
        let leased = bytes_max(&Change::Leased { token, hold: Some(Duration::MAX) });
        let ended = bytes_max(&Change::Dead { task: token.task, attempt });
        let frames = 2 * FRAME_BYTES;
        assert!((leased + ended + frames) as u64 <= ATTEMPT_BYTES, "{leased} + {ended} + {frames}");
    }

    #[test]
    fn what_is_booked_for_a_record_grows_with_what_it_says() {
        let kept: Vec<_> = (0..1000).map(TaskId).collect();
        let counts = Counts { next_task: TaskId(u64::MAX), unfinished: u64::MAX };
        let record = Record::Purged {
            queue: u64::MAX,
            before: u64::MAX,
            kept: vec![u64::MAX; kept.len()].into(),
        };
        assert!(bytes_max(&Change::Cleared { counts, kept }) >= record.bytes_max());

        let origin = Origin {
            queue: "tasks".into(),
            task: TaskId(0),
            attempt: 32,
            worker: "".into(),
            waited: Duration::ZERO,
            ran: Duration::ZERO,
            history: vec![Cause::Refused("x".repeat(1000).into()).into(); 32],
        };
        let told = encode_note(Some(&origin), &[], None).len();
        let terms = Terms { origin: Some(Box::new(origin)), ..Terms::default() };
        let payload = Payload::pickle(2, vec![0; 10].into());
        let put = Change::Put { task: TaskId(0), payload, terms: Some(Box::new(terms)) };
        assert!(told > 32_000 && bytes_max(&put) >= told + 10);
    }
}
