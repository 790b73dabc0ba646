//! A run of many jobs: which of them are started, and what becomes of those that have ended.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::halt::{Counts, Halt};
use super::joblog::{Joblog, Line, Past};
use super::output::{Done, Printer};
use super::process::{Ended, Outcome};
use super::shop::Shop;
use super::signals::Signals;
use super::template::Input;

/// Jobs that may have ended before one that is to be shown first.
const WAITING_MAX: usize = 256;

/// What is kept of a run.
pub(super) struct Run {
    pub(super) halt: Option<Halt>,
    pub(super) joblog: Option<Joblog>,
    pub(super) printer: Printer,
    counts: Counts,
    /// The exit code of whoever stops before the end.
    stopped: Option<u8>,
}

/// How a run goes on after a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    More,
    /// No more jobs are started.
    Stop,
    /// And those that run are killed.
    Kill,
}

impl Run {
    pub(super) fn new(halt: Option<Halt>, joblog: Option<Joblog>, printer: Printer) -> Self {
        Self { halt, joblog, printer, counts: Counts::default(), stopped: None }
    }

    /// Which jobs are not to be run.
    pub(super) fn past(&self) -> Arc<Past> {
        self.joblog.as_ref().map(Joblog::past).unwrap_or_default()
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.is_some()
    }

    /// Notes a job that has ended, and shows it when it is its turn; `order` counts those that were
    /// started, from 0.
    pub(super) fn ended(&mut self, order: u64, done: Done) -> Result<Next> {
        let Outcome { ended, started, ran, stdout, .. } = &done.outcome;
        if *ended == Ended::Cancelled {
            return Ok(Next::More);
        }
        self.counts.add(ended);
        if let Some(log) = &mut self.joblog {
            let (number, printed, command) = (done.input.number, stdout.len(), &done.line[..]);
            let (started, ran) = (*started, *ran);
            log.write(&Line { number, started, ran, printed, ended, command })?;
        }
        let mut next = Next::More;
        if let Some(halt) = self.halt
            && self.stopped.is_none()
            && halt.is_reached(&self.counts, ended)
        {
            self.stopped = Some(halt.exit_code(&self.counts, ended));
            next = if halt.is_now { Next::Kill } else { Next::Stop };
        }
        self.printer.take(order, done)?;
        Ok(next)
    }

    /// Notes a signal, and says so once.
    pub(super) fn interrupted(&mut self, (name, code): (&str, u8), running: usize) {
        self.stopped = Some(code);
        let done = self.counts.done;
        eprintln!("manyhands: {name}: {done} jobs have ended, {running} are killed");
    }

    pub(super) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.stopped.unwrap_or_else(|| self.counts.exit_code()))
    }

    /// Runs jobs on this machine until there are no more.
    pub(super) async fn work(
        &mut self,
        mut inputs: mpsc::Receiver<Result<Vec<u8>>>,
        (shop, cancel): (Shop, watch::Sender<bool>),
        jobs: usize,
    ) -> Result<()> {
        let (shop, past) = (Arc::new(shop), self.past());
        let mut signals = Signals::new()?;
        let mut running = JoinSet::new();
        let (mut started, mut read, mut has_more) = (0, 0, true);
        while !running.is_empty() || (has_more && self.stopped.is_none()) {
            let has_room = running.len() < jobs && self.printer.waiting() < WAITING_MAX;
            let may_start = has_more && has_room && self.stopped.is_none();
            tokio::select! {
                biased;
                // Further signals have nothing to add.
                signal = signals.next() => if !cancel.send_replace(true) {
                    self.interrupted(signal, running.len());
                },
                Some(ended) = running.join_next() => {
                    let (order, done): (_, Result<_>) = ended?;
                    if self.ended(order, done?)? == Next::Kill {
                        cancel.send_replace(true);
                    }
                }
                input = inputs.recv(), if may_start => {
                    let Some(argument) = input else {
                        has_more = false;
                        continue;
                    };
                    read += 1;
                    let input = Input { number: read, argument: argument? };
                    if past.has(read) {
                        continue;
                    }
                    let (shop, order) = (Arc::clone(&shop), started);
                    started += 1;
                    running.spawn(async move { (order, shop.run(input).await) });
                }
            }
        }
        Ok(())
    }
}
