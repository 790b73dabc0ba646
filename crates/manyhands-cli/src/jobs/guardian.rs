//! Sees to it that no job outlives this program, even if that is killed.
//!
//! The guardian is a process of its own that reads from a pipe which groups run. When the pipe ends
//! without a word, this program is gone, and the guardian kills them. A job that was started and not
//! told of is found by a mark in its environment, which Linux shows.

use std::collections::BTreeSet;
use std::io::{self, BufRead, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};

/// The variable that marks jobs.
const MARK: &str = "MANYHANDS_JOB_OF";
/// What is told when there is nothing to kill.
const FAREWELL: &str = "done";

/// The guardian of this process.
#[derive(Debug)]
pub(super) struct Guardian {
    mark: String,
    process: Child,
    pipe: Option<ChildStdin>,
}

impl Guardian {
    pub(super) fn start() -> Result<Self> {
        let mut nonce = [0; 8];
        getrandom::fill(&mut nonce).context("the system gives no random number")?;
        let mark = format!("{}-{:016x}", std::process::id(), u64::from_ne_bytes(nonce));
        let mut command = crate::this_program()?;
        command.args(["guardian", &mark]).env_remove(MARK).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut process = command.spawn().context("cannot start the guardian of the jobs")?;
        let pipe = process.stdin.take();
        Ok(Self { mark, process, pipe })
    }

    /// Marks a job that is about to be started.
    pub(super) fn mark(&self, command: &mut Command) {
        command.env(MARK, &self.mark);
    }

    pub(super) fn watch(&self, group: Pid) {
        self.tell(&format!("+{}\n", group.as_raw_nonzero()));
    }

    pub(super) fn forget(&self, group: Pid) {
        self.tell(&format!("-{}\n", group.as_raw_nonzero()));
    }

    /// Without a guardian there is nobody to tell: this process kills its jobs by itself.
    fn tell(&self, line: &str) {
        self.pipe.as_ref().map(|mut pipe| pipe.write_all(line.as_bytes()).ok());
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        self.tell(&format!("{FAREWELL}\n"));
        self.pipe = None;
        self.process.wait().ok();
    }
}

/// What the guardian does.
pub(crate) fn stand_by(mark: &str) -> Result<()> {
    let mut groups = BTreeSet::new();
    // An error ends it like the end of the pipe.
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        let (verb, group) = line.split_at_checked(1).unwrap_or_default();
        match (verb, group.parse::<i32>()) {
            ("+", Ok(group)) => drop(groups.insert(group)),
            ("-", Ok(group)) => drop(groups.remove(&group)),
            _ if line == FAREWELL => return Ok(()),
            _ => {}
        }
    }
    groups.extend(marked(mark));
    for group in groups.into_iter().filter_map(Pid::from_raw) {
        // It may have ended meanwhile.
        kill_process_group(group, Signal::KILL).ok();
    }
    Ok(())
}

/// The groups of processes with this mark.
#[cfg(target_os = "linux")]
fn marked(mark: &str) -> Vec<i32> {
    let mark = format!("{MARK}={mark}");
    let is_marked = |environment: &[u8]| {
        environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let marked = processes.filter(|process: &i32| {
        std::fs::read(format!("/proc/{process}/environ")).is_ok_and(|it| is_marked(&it))
    });
    let group = |process: i32| rustix::process::getpgid(Pid::from_raw(process)).ok();
    marked.filter_map(group).map(|group| group.as_raw_nonzero().get()).collect()
}

#[cfg(not(target_os = "linux"))]
fn marked(_mark: &str) -> Vec<i32> {
    Vec::new()
}
