//! Commands as jobs: `map` runs one for each input, `work` one for each task of a queue.
//!
//! A job is a command line made of a template and an argument (`template`, `quote`), started by itself
//! or by a shell (`launch`). It runs in a process group of its own (`process`), which ends with its
//! time, its lease or this program, whatever ends that (`guardian`). `shop` runs
//! jobs, `run` decides which, and `queue` has them run by the workers of a queue. What a job prints goes into files
//! without a name, and is shown whole when it has ended (`output`). `joblog` and `halt` have what is
//! kept and decided of jobs that have ended, `source` what they are run with.
//!
//! Invariant: nothing is kept of a job that has ended but what waits to be shown, and no more of them
//! are started than a window allows.

mod guardian;
mod halt;
mod joblog;
mod launch;
pub(crate) mod map;
mod output;
mod process;
mod queue;
mod quote;
mod run;
mod shop;
mod signals;
mod source;
mod template;
pub(crate) mod work;

pub(crate) use self::guardian::stand_by;
