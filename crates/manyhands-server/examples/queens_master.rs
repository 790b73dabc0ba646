//! Has the ways counted to place 8 to 12 queens, by any number of `queens_worker`s. A task is a
//! board's size and the column of the queen in its first row.
//!
//! `cargo run -p manyhands-server --example queens_master 127.0.0.1:5000 KEY_FILE`
#![expect(clippy::print_stdout, reason = "it says what it does")]

use std::collections::BTreeMap;
use std::env;
use std::error::Error;

use manyhands::AuthKey;
use manyhands_server::Server;

fn main() -> Result<(), Box<dyn Error>> {
    let (Some(address), Some(key_file)) = (env::args().nth(1), env::args().nth(2)) else {
        return Err("usage: queens_master ADDRESS KEY_FILE".into());
    };
    let key = AuthKey::from_file(key_file)?;
    let server = Server::builder().address(address).authkey(key).start()?; // queues at first use
    server.addresses().iter().for_each(|address| println!("Serving on {address}"));
    let tasks = server.queue::<(u32, u32)>("get_task_queue")?;
    let results = server.queue::<(u32, u64)>("get_result_queue")?;
    let board_columns = (8..=12).flat_map(|size| (0..size).map(move |column| (size, column)));
    let mut left = 0;
    for task in board_columns {
        tasks.put(&task)?;
        left += 1;
    }
    let mut totals = BTreeMap::<u32, u64>::new();
    for _ in 0..left {
        let (size, count) = results.get()?;
        *totals.entry(size).or_default() += count;
    }
    for (size, total) in totals {
        println!("{size} queens: {total} ways");
    }
    Ok(())
}
