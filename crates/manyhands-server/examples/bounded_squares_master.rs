//! Has numbers squared by `bounded_squares_worker`, or by a Python worker with the same queues, which
//! hold ten items each.
//!
//! `cargo run -p manyhands-server --example bounded_squares_master 127.0.0.1:8080 KEY_FILE`
#![expect(clippy::print_stdout, reason = "it says what it does")]

use std::env;
use std::error::Error;
use std::time::Duration;

use manyhands::AuthKey;
use manyhands_server::{QueueOptions, Server};

const TASKS: usize = 10;

fn main() -> Result<(), Box<dyn Error>> {
    let (Some(address), Some(key_file)) = (env::args().nth(1), env::args().nth(2)) else {
        return Err("usage: bounded_squares_master ADDRESS KEY_FILE".into());
    };
    let server = Server::builder()
        .address(address)
        .authkey(AuthKey::from_file(key_file)?)
        .queue("get_task_queue", QueueOptions::bounded(TASKS))
        .queue("get_result_queue", QueueOptions::bounded(TASKS))
        .start()?;
    server.addresses().iter().for_each(|address| println!("Serving on {address}"));
    let tasks = server.queue::<usize>("get_task_queue")?;
    let results = server.queue::<String>("get_result_queue")?;
    for n in (1..=TASKS).map(|i| i * 7919 % 10_000) {
        println!("Put task {n}...");
        tasks.put(&n)?;
    }
    println!("Try get results...");
    for _ in 0..TASKS {
        println!("Result: {}", results.get_timeout(Duration::from_secs(10))?);
    }
    println!("master exit.");
    Ok(())
}
