//! Squares the numbers of `map_master`, eight at a time, until the master has gone.
//!
//! `cargo run -p manyhands --example map_worker 127.0.0.1:5000 KEY_FILE`
#![expect(clippy::print_stdout, reason = "it says what it does")]

use std::env;
use std::error::Error;

use manyhands::blocking::{Client, Worker};
use manyhands::{AuthKey, Task};

fn main() -> Result<(), Box<dyn Error>> {
    let (Some(address), Some(key_file)) = (env::args().nth(1), env::args().nth(2)) else {
        return Err("usage: map_worker ADDRESS KEY_FILE".into());
    };
    let client = Client::connect(&address, AuthKey::from_file(key_file)?)?;
    let worker = Worker::new(&client).queue("tasks").concurrency(8);
    // An error, or a panic, is why this attempt failed: the task is tried again.
    match worker.run(|task: Task<u64>| task.checked_mul(*task).ok_or("too large")) {
        Ok(worked) => println!("worker exit: {} done, {} failed", worked.done, worked.failed),
        Err(error) if error.is_retryable() => println!("worker exit: the master has gone"),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}
