//! Has numbers squared by any number of `map_worker`s, and adds the squares up.
//!
//! `cargo run -p manyhands-server --example map_master 127.0.0.1:5000 KEY_FILE`
#![expect(clippy::print_stdout, reason = "it says what it does")]

use std::env;
use std::error::Error;

use manyhands::AuthKey;
use manyhands::blocking::{Client, Master};
use manyhands_server::{QueueOptions, Server};

fn main() -> Result<(), Box<dyn Error>> {
    let (Some(address), Some(key_file)) = (env::args().nth(1), env::args().nth(2)) else {
        return Err("usage: map_master ADDRESS KEY_FILE".into());
    };
    let key = AuthKey::from_file(key_file)?;
    let tasks = QueueOptions::default().results("answers").failures("results");
    let server =
        Server::builder().address(address).authkey(key.clone()).queue("tasks", tasks).start()?;
    let address = server.addresses().first().ok_or("no address")?.to_string();
    println!("Serving on {address}");
    let client = Client::connect(&address, key)?;
    let master = Master::new(&client).queue("tasks").results("answers");
    // In the order of the numbers, and no more than a window of them is ahead.
    let squares = master.map::<u64, _>(1..=1000u64)?;
    let sum = squares.sum::<Result<u64, _>>()?;
    println!("Result: {sum}");
    // The workers end.
    client.queue::<u64>("tasks")?.shutdown(false)?;
    Ok(())
}
