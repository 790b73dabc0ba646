//! Works for `timed_tasks_master`, or for a Python master with the same queues, and tells how long
//! each task took, in seconds.
//!
//! `cargo run -p manyhands --example timed_tasks_worker 127.0.0.1:5002 KEY_FILE`
#![expect(clippy::print_stdout, reason = "it says what it does")]

use std::error::Error;
use std::time::Duration;
use std::{env, thread};

use manyhands::AuthKey;
use manyhands::blocking::Client;

fn main() -> Result<(), Box<dyn Error>> {
    let (Some(address), Some(key_file)) = (env::args().nth(1), env::args().nth(2)) else {
        return Err("usage: timed_tasks_worker ADDRESS KEY_FILE".into());
    };
    let client = Client::connect(&address, AuthKey::from_file(key_file)?)?;
    let tasks = client.queue::<u32>("get_task")?;
    let results = client.queue::<(u32, f64)>("get_result")?; // in Python, a tuple too
    while let Ok(false) = tasks.is_empty() {
        let n = match tasks.get_timeout(Duration::from_secs(1)) {
            // Another worker took the last one, and the master may have gone by now.
            Err(error) if error.is_empty() || error.is_retryable() => break,
            n => n?,
        };
        println!("run task {n}");
        let seconds = f64::from(n % 4) / 10.0;
        thread::sleep(Duration::from_secs_f64(seconds)); // the work
        results.put(&(n, seconds))?;
    }
    Ok(())
}
