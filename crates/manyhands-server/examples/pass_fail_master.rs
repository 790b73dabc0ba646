//! Has numbers judged by `pass_fail_worker`, or by a Python worker with the same queues. It polls for
//! results.
//!
//! `cargo run -p manyhands-server --example pass_fail_master 127.0.0.1:4444 KEY_FILE`
#![expect(clippy::print_stdout, reason = "it says what it does")]

use std::error::Error;
use std::time::Duration;
use std::{env, thread};

use manyhands::AuthKey;
use manyhands_server::Server;

fn main() -> Result<(), Box<dyn Error>> {
    let (Some(address), Some(key_file)) = (env::args().nth(1), env::args().nth(2)) else {
        return Err("usage: pass_fail_master ADDRESS KEY_FILE".into());
    };
    let key = AuthKey::from_file(key_file)?;
    let server = Server::builder().address(address).authkey(key).start()?; // queues at first use
    server.addresses().iter().for_each(|address| println!("[Master] - serving on {address}"));
    let tasks = server.queue::<u64>("get_task_queue")?;
    let results = server.queue::<String>("get_result_queue")?;
    for data in 1..=6 {
        tasks.put(&data)?;
        println!("[Master] - put data into tasks: {data}");
    }
    let mut left = 6;
    while left > 0 {
        if results.is_empty() {
            println!("[Master] - No results has been returned!");
            thread::sleep(Duration::from_millis(500));
        } else {
            println!("[Master] - get result from queues: {}", results.try_get()?);
            left -= 1;
        }
    }
    Ok(())
}
