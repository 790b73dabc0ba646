//! Judges numbers for `pass_fail_master`, or for a Python master with the same queues. It polls for
//! tasks and ends when the master has gone.
//!
//! `cargo run -p manyhands --example pass_fail_worker 127.0.0.1:4444 KEY_FILE`
#![expect(clippy::print_stdout, reason = "it says what it does")]

use std::error::Error;
use std::time::Duration;
use std::{env, thread};

use manyhands::AuthKey;
use manyhands::blocking::{Client, Queue};

fn main() -> Result<(), Box<dyn Error>> {
    let (Some(address), Some(key_file)) = (env::args().nth(1), env::args().nth(2)) else {
        return Err("usage: pass_fail_worker ADDRESS KEY_FILE".into());
    };
    let client = Client::connect(&address, AuthKey::from_file(key_file)?)?;
    match work(&client.queue("get_task_queue")?, &client.queue("get_result_queue")?) {
        Err(error) if error.is_retryable() => println!("[Worker] - {error}"),
        result => result?,
    }
    Ok(())
}

fn work(tasks: &Queue<u64>, results: &Queue<&str>) -> Result<(), manyhands::Error> {
    loop {
        if tasks.is_empty()? {
            println!("[Worker] - Have completed tasks!");
            thread::sleep(Duration::from_millis(500));
            continue;
        }
        let n = tasks.get_timeout(Duration::from_secs(5))?;
        let result = if n % 2 == 0 { "passed" } else { "faild" };
        println!("[Worker] - {n}: {result}");
        results.put(&result)?;
    }
}
