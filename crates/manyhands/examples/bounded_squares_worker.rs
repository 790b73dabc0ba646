//! Squares numbers for `bounded_squares_master`, or for a Python master with the same queues, for as
//! long as there are any.
//!
//! `cargo run -p manyhands --example bounded_squares_worker 127.0.0.1:8080 KEY_FILE`
#![expect(clippy::print_stdout, reason = "it says what it does")]

use std::error::Error;
use std::time::Duration;
use std::{env, thread};

use manyhands::AuthKey;
use manyhands::blocking::Client;

fn main() -> Result<(), Box<dyn Error>> {
    let (Some(address), Some(key_file)) = (env::args().nth(1), env::args().nth(2)) else {
        return Err("usage: bounded_squares_worker ADDRESS KEY_FILE".into());
    };
    println!("Connect to server {address}...");
    let client = Client::connect(&address, AuthKey::from_file(key_file)?)?;
    let tasks = client.queue::<u64>("get_task_queue")?;
    let results = client.queue::<String>("get_result_queue")?;
    while let Ok(false) = tasks.is_empty() {
        let n = match tasks.get_timeout(Duration::from_secs(1)) {
            // Another worker took the last one, and the master may have gone by now.
            Err(error) if error.is_empty() || error.is_retryable() => break,
            n => n?,
        };
        println!("run task {n} * {n}...");
        thread::sleep(Duration::from_millis(100)); // the work
        results.put(&format!("{n} * {n} = {}", n * n))?;
    }
    println!("worker exit.");
    Ok(())
}
