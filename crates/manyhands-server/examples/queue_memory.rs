//! Resident memory per queued task, and how long `put` and `get` take at depth (Linux).
//!
//! `cargo run --release -p manyhands-server --example queue_memory [tasks…]`
#![expect(clippy::print_stdout, reason = "the table is what it is for")]
#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]

use std::error::Error;
use std::time::Instant;

use manyhands::wire::pickle::Payload;
use manyhands_server::queue::{
    Order, Outcome, Patience, Prepared, Queue, QueueOptions, Step, Taker, WaiterId,
};

/// What `pickle.dumps(b'…')` makes of 100 bytes, without PROTO and STOP.
const PICKLED_BYTES: usize = 105;

fn main() -> Result<(), Box<dyn Error>> {
    let counts: Vec<u64> =
        std::env::args().skip(1).map(|arg| arg.parse()).collect::<Result<_, _>>()?;
    let counts = if counts.is_empty() { vec![1_000_000, 5_000_000] } else { counts };
    println!("order      tasks  bytes/task  ns/put  ns/get  resident afterwards");
    for order in [Order::Fifo, Order::Lifo] {
        for &tasks in &counts {
            measure(order, tasks)?;
        }
    }
    Ok(())
}

fn measure(order: Order, tasks: u64) -> Result<(), Box<dyn Error>> {
    let mut options = QueueOptions::default();
    options.order = order;
    let mut queue = Queue::new(options, 0);
    let mut step = Step::new(u64::MAX, 0);
    let (now, waiter) = (Patience::Now, WaiterId(0));

    let (before, start) = (resident_bytes()?, Instant::now());
    for task in 0..tasks {
        let mut bytes = vec![0; PICKLED_BYTES];
        bytes.iter_mut().zip(task.to_le_bytes()).for_each(|(to, from)| *to = from);
        let payload = Payload::pickle(3, bytes.into());
        queue.put(Prepared::new(payload, None, order), None, now, waiter, &mut step)?;
    }
    let put_ns = start.elapsed().as_nanos() / u128::from(tasks);
    let per_task = (resident_bytes()? - before) as f64 / tasks as f64;

    let start = Instant::now();
    let taker = Taker::leasing(5);
    while let Some(Outcome::Task(grant)) = queue.get(taker, now, waiter, &mut step) {
        queue.ack(grant.token, &mut step);
    }
    let get_ns = start.elapsed().as_nanos() / u128::from(tasks);
    let after = resident_bytes()? / 1024;
    println!("{order:?} {tasks:>11} {per_task:>11.1} {put_ns:>7} {get_ns:>7} {after:>14} KiB");
    Ok(())
}

fn resident_bytes() -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).ok_or("no VmRSS")?;
    let kib: u64 = line.split_whitespace().nth(1).ok_or("no number")?.parse()?;
    Ok(kib * 1024)
}
