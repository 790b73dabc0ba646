//! Squares numbers for `squares_master`, or for a Python master with the same queues: ten tries.
//!
//! `cargo run -p manyhands --example squares_worker 127.0.0.1:5000 KEY_FILE`
#![expect(clippy::print_stdout, reason = "it says what it does")]

use std::error::Error;
use std::time::Duration;
use std::{env, thread};

use manyhands::AuthKey;
use manyhands::blocking::Client;

fn main() -> Result<(), Box<dyn Error>> {
    let (Some(address), Some(key_file)) = (env::args().nth(1), env::args().nth(2)) else {
        return Err("usage: squares_worker ADDRESS KEY_FILE".into());
    };
    println!("Connect to server {address}...");
    let client = Client::connect(&address, AuthKey::from_file(key_file)?)?;
    let tasks = client.queue::<u64>("get_task_queue")?;
    let results = client.queue::<String>("get_result_queue")?;
    for _ in 0..10 {
        match tasks.get_timeout(Duration::from_secs(1)) {
            Ok(n) => {
                println!("run task {n} * {n}...");
                thread::sleep(Duration::from_millis(100)); // the work
                results.put(&format!("{n} * {n} = {}", n * n))?;
            }
            Err(error) if error.is_empty() => println!("task queue is empty."),
            Err(error) if error.is_retryable() => break, // the master has gone
            Err(error) => return Err(error.into()),
        }
    }
    println!("worker exit.");
    Ok(())
}
