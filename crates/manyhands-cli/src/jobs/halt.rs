//! `--halt`: when no more jobs are started, because of what became of some.

use std::str::FromStr;

use super::process::Ended;

/// The exit code if more than a hundred jobs failed.
const MANY_FAILED: u8 = 101;

/// When to stop, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Halt {
    /// Whether jobs that run are killed.
    pub(super) is_now: bool,
    on: On,
    count: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum On {
    Fail,
    Success,
    Done,
}

impl FromStr for Halt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once(',').and_then(|(when, what)| {
            let is_now = match when {
                "now" => true,
                "soon" => false,
                _ => return None,
            };
            let (on, count) = what.split_once('=')?;
            let on = match on {
                "fail" => On::Fail,
                "success" => On::Success,
                "done" => On::Done,
                _ => return None,
            };
            let count = count.parse().ok().filter(|count| *count > 0)?;
            Some(Self { is_now, on, count })
        });
        parsed.ok_or_else(|| {
            "expected now or soon, and fail=N, success=N or done=N, such as now,fail=1".to_owned()
        })
    }
}

/// How many jobs have ended, and how.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) done: u64,
    pub(super) failed: u64,
}

impl Counts {
    pub(super) fn add(&mut self, ended: &Ended) {
        self.done += 1;
        self.failed += u64::from(!ended.is_success());
    }

    /// The number of jobs that failed, as far as it is told.
    pub(super) fn exit_code(&self) -> u8 {
        u8::try_from(self.failed).map_or(MANY_FAILED, |failed| failed.min(MANY_FAILED))
    }
}

impl Halt {
    /// The exit code of a run that it has ended.
    pub(super) fn exit_code(self, counts: &Counts, last: &Ended) -> u8 {
        match self.on {
            On::Success => 0,
            _ if self.count == 1 => last.exit_code(),
            _ => counts.exit_code(),
        }
    }

    /// Whether the job that has just been counted is the last that it takes.
    pub(super) fn is_reached(self, counts: &Counts, last: &Ended) -> bool {
        let (count, is_it) = match self.on {
            On::Fail => (counts.failed, !last.is_success()),
            On::Success => (counts.done - counts.failed, last.is_success()),
            On::Done => (counts.done, true),
        };
        is_it && count >= self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_halt_is_read_and_reached() {
        let halt: Halt = "now,fail=2".parse().unwrap();
        assert!(halt.is_now);
        let mut counts = Counts::default();
        for (ended, is_reached) in [
            (Ended::Exit(1), false),
            (Ended::Exit(0), false),
            (Ended::TimedOut, true),
            (Ended::Exit(0), false),
        ] {
            counts.add(&ended);
            assert_eq!(halt.is_reached(&counts, &ended), is_reached);
        }
        for text in ["", "now", "later,fail=1", "soon,fail=0", "soon,fail=-1", "now,fail=5%"] {
            text.parse::<Halt>().unwrap_err();
        }
    }
}
