//! Downloads images, or says so, for `images_master` or a Python master with the same queues.
//!
//! `cargo run -p manyhands --example images_worker 127.0.0.1:8000 KEY_FILE`
//!
//! A Python master whose authkey is the number 510210 has that many NUL bytes for a key:
//! `head -c 510210 /dev/zero > KEY_FILE`.
#![expect(clippy::print_stdout, reason = "it says what it does")]

use std::error::Error;
use std::time::Duration;
use std::{env, thread};

use manyhands::AuthKey;
use manyhands::blocking::Client;

fn main() -> Result<(), Box<dyn Error>> {
    let (Some(address), Some(key_file)) = (env::args().nth(1), env::args().nth(2)) else {
        return Err("usage: images_worker ADDRESS KEY_FILE".into());
    };
    println!("Connect to server {address}...");
    let client = Client::connect(&address, AuthKey::from_file(key_file)?)?;
    let tasks = client.queue::<String>("get_task_queue")?;
    let results = client.queue::<String>("get_result_queue")?;
    while let Ok(false) = tasks.is_empty() {
        let url = match tasks.get_timeout(Duration::from_secs(5)) {
            // Another worker took the last one, and the master may have gone by now.
            Err(error) if error.is_empty() || error.is_retryable() => break,
            url => url?,
        };
        println!("run task download {url}...");
        thread::sleep(Duration::from_millis(100)); // the work
        results.put(&format!("{url} --->>>success"))?;
    }
    println!("worker exit.");
    Ok(())
}
