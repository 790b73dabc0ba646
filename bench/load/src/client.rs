//! The Rust client of manyhands: what a program pays for the library beside the bare protocol.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use bytes::Bytes;
use manyhands::wire::pickle::Payload;
use manyhands::{Client, Queue};
use tokio::task::JoinSet;

use crate::clock;
use crate::drive::{Load, Next, Tally, Work};
use crate::login;

const QUEUE: &str = "get_task_queue";

/// A client, whose slots all go on with one queue.
pub(crate) struct RustClient {
    client: Client,
    queue: Queue<Bytes>,
}

/// Connects, and opens the queue.
pub(crate) async fn connect(address: &str, key: &Path) -> Result<RustClient> {
    let client = Client::connect(address, login::read_key(key)?).await?;
    let queue = client.queue(QUEUE).await?;
    Ok(RustClient { client, queue })
}

impl RustClient {
    /// Gives each slot a future of its own, as a program would.
    pub(crate) async fn run(self, load: Load) -> Result<Tally> {
        let mut slots = JoinSet::new();
        for _ in 0..load.arguments.outstanding {
            slots.spawn(slot(load.clone(), self.queue.clone()));
        }
        let mut total = load.tally();
        while let Some(tally) = slots.join_next().await {
            total.merge(&tally??);
        }
        self.client.close().await?;
        Ok(total)
    }
}

/// Puts, and takes what the work wants taken, while there is work.
async fn slot(mut load: Load, queue: Queue<Bytes>) -> Result<Tally> {
    let (mut tally, batch, work) = (load.tally(), load.arguments.batch, load.arguments.work);
    let takes = match work {
        Work::Put => false,
        Work::Pair => true,
        Work::Cycle => bail!("the Rust client is measured with puts and pairs only"),
    };
    loop {
        let sent = clock::now();
        if !load.goes_on(sent) {
            return Ok(tally);
        }
        let items = (0..batch).map(|_| Payload::bytes(load.items.make()));
        let items = items.collect::<Result<Vec<_>, _>>()?;
        ensure!(queue.put_many_payloads(&items, None).await? == batch, "not all were added");
        let put = clock::now();
        tally.add(Next::Put, sent, put, if takes { 0 } else { batch as u64 });
        if takes {
            let taken = queue.get_many_payloads(batch, None).await?;
            tally.add(Next::Take, put, clock::now(), taken.len() as u64);
        }
    }
}
