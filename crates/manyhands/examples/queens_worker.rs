//! Counts ways to place queens for `queens_master`. Start as many as there are cores.
//!
//! `cargo run --release -p manyhands --example queens_worker 127.0.0.1:5000 KEY_FILE`

use std::env;
use std::error::Error;
use std::time::Duration;

use manyhands::AuthKey;
use manyhands::blocking::Client;

fn main() -> Result<(), Box<dyn Error>> {
    let (Some(address), Some(key_file)) = (env::args().nth(1), env::args().nth(2)) else {
        return Err("usage: queens_worker ADDRESS KEY_FILE".into());
    };
    let client = Client::connect(&address, AuthKey::from_file(key_file)?)?;
    let tasks = client.queue::<(u32, u32)>("get_task_queue")?;
    let results = client.queue::<(u32, u64)>("get_result_queue")?;
    loop {
        match tasks.get_timeout(Duration::from_secs(1)) {
            Ok((size, column)) => {
                let (queen, all) = (1 << column, (1 << size) - 1);
                results.put(&(size, count(all, queen, queen << 1, queen >> 1)))?;
            }
            // Nothing is left to do, or the master has gone.
            Err(error) if error.is_empty() || error.is_retryable() => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Ways to fill the other rows, where queens already hold these columns and diagonals (one bit each).
fn count(all: u32, columns: u32, left: u32, right: u32) -> u64 {
    let places = (0..32).map(|i| 1 << i).filter(|q| all & !(columns | left | right) & q != 0);
    let place = |q| count(all, columns | q, (left | q) << 1, (right | q) >> 1);
    if columns == all { 1 } else { places.map(place).sum() }
}
