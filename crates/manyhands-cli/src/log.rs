//! The log of `serve`: lines wait in a bounded buffer until a thread of their own has written them.
//!
//! Invariant: nobody waits for standard error, which may be a pipe that nobody reads. Lines that find
//! no room are dropped and counted. Only after an error its writer waits a moment, as it may be the
//! last line of the process.

use std::io::{self, Write};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use manyhands::text::printable;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait to be written, in bytes.
const WAITING_LEN_MAX: usize = 1 << 20;
/// How long the writer of an error waits until its line is written.
const ERROR_PATIENCE: Duration = Duration::from_millis(100);
/// How long the end of the process waits until all lines are written.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// Where lines go. Clones are the same log.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Whether lines have colours, by escape sequences.
    has_colours: bool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    is_writing: bool,
    /// Nothing was written while the writer of an error waited.
    is_stuck: bool,
    /// Lines, since the start.
    dropped: u64,
    /// How many of them the log has told about.
    told: u64,
}

impl State {
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && !self.is_writing && self.told == self.dropped
    }
}

impl Log {
    /// Begins to write what comes to `stream`, on a thread of its own.
    pub(crate) fn start(
        stream: impl Write + Send + 'static,
        has_colours: bool,
    ) -> io::Result<Self> {
        let log = Self(Arc::new(Shared { has_colours, ..Shared::default() }));
        thread::Builder::new().name("log".into()).spawn({
            let log = log.clone();
            move || log.write_on(stream)
        })?;
        Ok(log)
    }

    /// Waits until all lines are written, but not for ever.
    pub(crate) fn finish(&self) {
        self.wait(END_PATIENCE);
    }

    fn write_on(&self, mut stream: impl Write) {
        loop {
            let (lines, dropped) = self.take();
            if let Some(dropped) = dropped {
                // It comes behind the lines that were taken now, which are older.
                tracing::warn!(
                    dropped,
                    "lines of this log were dropped since the start, because nobody read them"
                );
            }
            // Where standard error is closed there is nobody to tell.
            drop(stream.write_all(&lines).and_then(|()| stream.flush()));
        }
    }

    /// Waits for lines, and takes them; the second is how many were dropped, if that is news.
    fn take(&self) -> (Vec<u8>, Option<u64>) {
        let mut state = self.lock();
        state.is_writing = false;
        state.is_stuck = false;
        self.0.changed.notify_all();
        let is_idle = |state: &mut State| state.is_idle();
        state = self.0.changed.wait_while(state, is_idle).unwrap_or_else(PoisonError::into_inner);
        state.is_writing = true;
        let dropped = (state.told < state.dropped).then_some(state.dropped);
        state.told = state.dropped;
        (std::mem::take(&mut state.waiting), dropped)
    }

    fn push(&self, line: &[u8]) {
        // A text of somebody else must not look like another line.
        let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(line));
        let line = printable(&text, |char| char == '\x1b' && self.0.has_colours);
        let mut state = self.lock();
        if state.waiting.len() + line.len() >= WAITING_LEN_MAX {
            state.dropped += 1;
            return;
        }
        state.waiting.extend_from_slice(line.as_bytes());
        state.waiting.push(b'\n');
        self.0.changed.notify_all();
    }

    /// Waits until the thread has nothing to do; whether that came in time.
    fn wait(&self, patience: Duration) -> bool {
        let is_busy = |state: &mut State| !state.is_idle();
        let waited = self.0.changed.wait_timeout_while(self.lock(), patience, is_busy);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Waits for the line of an error, unless nobody reads the log anyway.
    fn wait_for_error(&self) {
        if !self.lock().is_stuck && !self.wait(ERROR_PATIENCE) {
            self.lock().is_stuck = true;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs `write` on a thread of its own and waits until it is done, but not for ever: the stream may be
/// a pipe that nobody reads. The process can end all the same.
pub(crate) fn write_with_patience<T: Send + 'static>(
    write: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (done, waits) = mpsc::channel();
    // Nobody waits any more if it comes too late.
    let writing = thread::Builder::new().spawn(move || drop(done.send(write())));
    writing.ok().and_then(|_| waits.recv_timeout(END_PATIENCE).ok())
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = LineWriter;

    fn make_writer(&'a self) -> LineWriter {
        LineWriter { log: self.clone(), is_error: false }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> LineWriter {
        LineWriter { log: self.clone(), is_error: *meta.level() == Level::ERROR }
    }
}

/// Takes one line, in one call.
#[derive(Debug)]
pub(crate) struct LineWriter {
    log: Log,
    is_error: bool,
}

impl Write for LineWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.log.push(line);
        if self.is_error {
            self.log.wait_for_error();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// A stream whose writes go through one by one, as somebody allows them.
    struct Pipe {
        allowed: Receiver<()>,
        written: Sender<String>,
    }

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.allowed.recv().map_err(io::Error::other)?;
            let text = String::from_utf8(bytes.to_vec()).map_err(io::Error::other)?;
            self.written.send(text).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn log() -> (Log, Sender<()>, Receiver<String>) {
        let ((allow, allowed), (written, lines)) = (channel(), channel());
        (Log::start(Pipe { allowed, written }, false).unwrap(), allow, lines)
    }

    #[test]
    fn lines_that_find_no_room_are_dropped_counted_and_told_about() {
        let (log, allow, written) = log();
        let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false);
        tracing::subscriber::set_global_default(subscriber.finish()).unwrap();
        let line = [b'x'; 1000];
        for _ in 0..3 * WAITING_LEN_MAX / line.len() {
            log.make_writer().write_all(&line).unwrap();
        }
        let dropped = log.lock().dropped;
        assert!(dropped > 0 && log.lock().waiting.len() <= WAITING_LEN_MAX);
        assert!(!log.wait(Duration::ZERO), "nothing was written yet");
        drop((0..4).map(|_| allow.send(())).collect::<Vec<_>>());
        let told = written.iter().find(|text| text.contains("dropped")).unwrap();
        assert!(told.contains(&format!("dropped={dropped}")), "{told}");
    }

    #[test]
    fn the_writer_of_an_error_waits_a_moment_once() {
        let (log, allow, _written) = log();
        let mut writer = LineWriter { log: log.clone(), is_error: true };
        writer.write_all(b"the first").unwrap();
        assert!(log.lock().is_stuck);
        // It would take ten seconds if each waited.
        for _ in 0..100 {
            writer.write_all(b"another").unwrap();
        }
        drop((0..2).map(|_| allow.send(())).collect::<Vec<_>>());
        log.finish();
        assert!(log.lock().is_idle() && !log.lock().is_stuck);
    }

    #[test]
    fn a_text_of_others_cannot_look_like_a_line_or_command_a_terminal() {
        let (log, allow, written) = log();
        log.make_writer().write_all("a\nb\x1b[31m\u{202e}c\n".as_bytes()).unwrap();
        allow.send(()).unwrap();
        assert_eq!(written.recv().unwrap(), "a\\u000ab\\u001b[31m\\u202ec\n");
    }
}
