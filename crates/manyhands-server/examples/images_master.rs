//! Has images downloaded by `images_worker`, or by a Python worker with the same queues.
//!
//! `cargo run -p manyhands-server --example images_master 127.0.0.1:8000 KEY_FILE`
#![expect(clippy::print_stdout, reason = "it says what it does")]

use std::env;
use std::error::Error;
use std::time::Duration;

use manyhands::AuthKey;
use manyhands_server::Server;

fn main() -> Result<(), Box<dyn Error>> {
    let (Some(address), Some(key_file)) = (env::args().nth(1), env::args().nth(2)) else {
        return Err("usage: images_master ADDRESS KEY_FILE".into());
    };
    let key = AuthKey::from_file(key_file)?;
    let server = Server::builder().address(address).authkey(key).start()?; // queues at first use
    server.addresses().iter().for_each(|address| println!("serving on {address}"));
    let tasks = server.queue::<String>("get_task_queue")?;
    let results = server.queue::<String>("get_result_queue")?;
    for url in (0..10).map(|i| format!("ImageUrl_{i}")) {
        println!("put task {url} ...");
        tasks.put(&url)?;
    }
    println!("try get result...");
    for _ in 0..10 {
        println!("result is {}", results.get_timeout(Duration::from_secs(10))?);
    }
    Ok(())
}
