//! Has tasks done by `timed_tasks_worker`, or by a Python worker with the same queues, and waits
//! until the queue of results is full.
//!
//! `cargo run -p manyhands-server --example timed_tasks_master 127.0.0.1:5002 KEY_FILE`
#![expect(clippy::print_stdout, reason = "it says what it does")]

use std::error::Error;
use std::time::Duration;
use std::{env, thread};

use manyhands::AuthKey;
use manyhands_server::{QueueOptions, Server};

fn main() -> Result<(), Box<dyn Error>> {
    let (Some(address), Some(key_file)) = (env::args().nth(1), env::args().nth(2)) else {
        return Err("usage: timed_tasks_master ADDRESS KEY_FILE".into());
    };
    let server = Server::builder()
        .address(address)
        .authkey(AuthKey::from_file(key_file)?)
        .queue("get_task", QueueOptions::bounded(10))
        .queue("get_result", QueueOptions::bounded(10))
        .start()?;
    server.addresses().iter().for_each(|address| println!("Serving on {address}"));
    let tasks = server.queue::<u32>("get_task")?;
    let results = server.queue::<(u32, f64)>("get_result")?; // in Python, a tuple too
    for i in 0..10 {
        println!("Put task {i}...");
        tasks.put(&i)?;
    }
    while !results.is_full() {
        thread::sleep(Duration::from_millis(100));
    }
    for _ in 0..results.qsize() {
        let (task, seconds) = results.get()?;
        println!("task {task} is finish , runtime:{seconds} s");
    }
    Ok(())
}
