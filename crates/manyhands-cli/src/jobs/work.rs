//! `manyhands work`: a command for each task of a queue, on any machine.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use manyhands::{Client, Error, Stopper, Tally, Task, Value, Worker};

use super::launch::Launch;
use super::shop::{Shop, ShopArguments};
use super::signals::Signals;
use super::template::Template;
use crate::connection::Connection;

/// How long a task stays with a machine that is gone, and four times as long as a job goes on whose task
/// was given to another.
const HOLD: Duration = Duration::from_secs(20);

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    shop: ShopArguments,
    /// The command; {} and the other placeholders of `manyhands map` stand for the task, and without
    /// any of them the task is its standard input
    #[arg(long, value_name = "COMMAND")]
    exec: OsString,
    /// Name of the queue, which declares where results go
    queue: String,
}

/// Works until the queue is shut down, or until a signal.
///
/// # Errors
///
/// What ends everything: the caller's exit code is 255 then.
pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    let runtime = arguments.shop.runtime()?;
    let code = runtime.block_on(async {
        let mut signals = Signals::new()?;
        let client = arguments.connection.open_async().await?;
        let launch = Launch::new(Template::new(arguments.exec.as_bytes()));
        let (shop, _cancel) = Shop::open(&arguments.shop, launch)?;
        let (stopper, working) =
            start(&client, &arguments.queue, arguments.shop.jobs, Arc::new(shop));
        let mut working = Box::pin(working);
        let mut is_stopped = false;
        let code = loop {
            tokio::select! {
                biased;
                (name, code) = signals.next() => {
                    if is_stopped {
                        break code;
                    }
                    is_stopped = true;
                    eprintln!("manyhands: {name}: what has begun is finished; again to kill it");
                    stopper.stop();
                }
                worked = &mut working => {
                    worked?;
                    break 0;
                }
            }
        };
        // Jobs that run are killed with it.
        drop(working);
        client.close().await?;
        Ok(ExitCode::from(code))
    });
    runtime.shutdown_background();
    code
}

/// A worker whose function runs a command, and what stops it.
pub(super) fn start(
    client: &Client,
    queue: &str,
    jobs: usize,
    shop: Arc<Shop>,
) -> (Stopper, impl Future<Output = Result<Tally, Error>> + use<>) {
    let worker = Worker::new(client).queue(queue).concurrency(jobs).hold(HOLD);
    let stopper = worker.stopper();
    let working = worker.run(move |task: Task<Value>| {
        let shop = Arc::clone(&shop);
        async move { shop.attempt_task(task).await }
    });
    (stopper, working)
}
