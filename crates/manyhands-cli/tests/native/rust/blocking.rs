//! The blocking client: a call that is not waited for is on a thread of its own.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use manyhands::blocking::{Client, Lease, Queue};
use manyhands::{ConnectOptions, Error, Peek, PutOptions, TaskState};
use serde_json::{Value, json};

use super::{code, owned, shown_info, shown_peeked, told};
use crate::face::{Call, Face, Get, Settlement};
use crate::support::{KEY, Server};

pub(crate) struct BlockingRust {
    client: Client,
    queues: BTreeMap<String, Queue<Value>>,
    leases: Leases,
    pushed: BTreeMap<String, Pushed>,
    calls: BTreeMap<u64, JoinHandle<Value>>,
}

/// Leases that come ahead; one call at a time waits for the next.
type Pushed = Arc<Mutex<manyhands::blocking::Leases<Value>>>;

/// Leases by the tokens that checks know them by.
type Leases = Arc<Mutex<Vec<Option<Lease<Value>>>>>;

impl Face for BlockingRust {
    fn connect(server: &Server, name: &str, _reader: u8) -> Self {
        let options = ConnectOptions { session_name: name.to_owned(), ..ConnectOptions::default() };
        let address = format!("127.0.0.1:{}", server.port());
        let client = Client::connect_with(&address, KEY, options).unwrap();
        let (queues, leases, pushed) = (BTreeMap::new(), Leases::default(), BTreeMap::new());
        Self { client, queues, leases, pushed, calls: BTreeMap::new() }
    }

    fn start(&mut self, number: u64, call: Call<'_>) {
        let call = self.prepared(call);
        self.calls.insert(number, thread::spawn(call));
    }

    fn flush(&mut self) {}

    fn finish(&mut self, number: u64) -> Value {
        self.calls.remove(&number).expect("it was started").join().unwrap()
    }
}

impl BlockingRust {
    fn prepared(&mut self, call: Call<'_>) -> Box<dyn FnOnce() -> Value + Send> {
        let (client, leases) = (self.client.clone(), self.leases.clone());
        if let Call::Open { queue } = call {
            let opened = client.queue(queue).map(|it| drop(self.queues.insert(queue.into(), it)));
            return Box::new(|| told(opened.map(|()| Value::Null)));
        }
        let queue = |name: &str| self.queues[name].clone();
        match call {
            Call::Leases { queue: name, ahead } => {
                let pushed = queue(name).leases(ahead).unwrap();
                self.pushed.insert(name.to_owned(), Arc::new(Mutex::new(pushed)));
                Box::new(|| Value::Null)
            }
            Call::Next { queue: name } => {
                let pushed = Arc::clone(&self.pushed[name]);
                Box::new(move || {
                    let next = pushed.lock().unwrap().next().transpose();
                    let shown = |next: Option<_>| next.map(|next| shown(vec![next], &leases));
                    told(next.map(|next| shown(next).unwrap_or_default()))
                })
            }
            Call::Leave { queue: name } => {
                self.pushed.remove(name);
                Box::new(|| Value::Null)
            }
            Call::Put { queue: name, items, wait, numbers } => {
                let (queue, wait) = (queue(name), wait.map(Duration::from_secs_f64));
                let items: Vec<_> = items.iter().map(owned).collect();
                Box::new(move || put(&queue, &items, wait, numbers))
            }
            Call::Get(get) => {
                let (queue, wait) = (queue(get.queue), get.wait.map(Duration::from_secs_f64));
                let Get { max, leased, informed, .. } = get;
                let max = usize::try_from(max).unwrap();
                Box::new(move || match (leased, informed) {
                    (true, _) => {
                        told(queue.lease_many(max, wait).map(|tasks| shown(tasks, &leases)))
                    }
                    (_, true) => told(queue.take_with_info(wait).map(|taken| {
                        let info = taken.info.as_ref().map(shown_info);
                        json!([{ "item": { "json": taken.item }, "info": info }])
                    })),
                    _ => told(queue.get_many(max, wait).map(|items| {
                        items.into_iter().map(|item| json!({ "item": { "json": item } })).collect()
                    })),
                })
            }
            Call::Settle { settlements, .. } => Box::new(move || {
                settlements.iter().map(|settlement| settle(&leases, settlement)).collect()
            }),
            Call::TaskDone { queue: name, count } => {
                let queue = queue(name);
                let done = move || (0..count).try_for_each(|_| queue.task_done());
                Box::new(move || told(done().map(Value::from)))
            }
            Call::Join { queue: name } => {
                let queue = queue(name);
                Box::new(move || told(queue.join().map(Value::from)))
            }
            Call::Size { queue: name } => {
                let queue = queue(name);
                Box::new(move || told(queue.qsize().map(|size| json!([size, 0]))))
            }
            Call::List { after } => {
                let after = after.to_owned();
                Box::new(move || {
                    told(client.queues().map(|mut queues| {
                        queues.retain(|queue| queue.name > after);
                        json!([queues, false])
                    }))
                })
            }
            Call::Peek { queue: name, max, state } => {
                let (queue, state) = (queue(name), TaskState::named(state).unwrap());
                let peek = Peek { max: usize::try_from(max).unwrap(), state, items: true };
                Box::new(move || {
                    told(queue.peek(peek).map(|tasks| tasks.iter().map(shown_peeked).collect()))
                })
            }
            Call::Redrive { queue: name, max, task } => {
                let (queue, max) = (queue(name), usize::try_from(max).unwrap());
                Box::new(move || {
                    told(match task {
                        Some(task) => queue.redrive_task(task).map(|moved| u64::from(moved).into()),
                        None => queue.redrive(max).map(Value::from),
                    })
                })
            }
            Call::Purge { queue: name } => {
                let queue = queue(name);
                Box::new(move || told(queue.purge().map(Value::from)))
            }
            Call::Shutdown { queue: name, immediate } => {
                let queue = queue(name);
                Box::new(move || told(queue.shutdown(immediate).map(Value::from)))
            }
            Call::Ping => Box::new(move || told(client.number_of_objects().map(|_| Value::Null))),
            other => unimplemented!("this client has no {other:?}"),
        }
    }
}

fn put(
    queue: &Queue<Value>,
    items: &[(Value, PutOptions)],
    timeout: Option<Duration>,
    numbered: bool,
) -> Value {
    let is_plain = items.iter().all(|(_, options)| *options == PutOptions::default());
    let (mut count, mut numbers) = (0, Vec::new());
    let mut add = || -> Result<(), Error> {
        while count < items.len() {
            let rest = &items[count..];
            if is_plain && !numbered {
                let rest = rest.iter().map(|(item, _)| item);
                count += match timeout {
                    Some(timeout) => queue.put_many_timeout(rest, timeout)?,
                    None => queue.put_many(rest)?,
                };
            } else {
                let (item, options) = &rest[0];
                numbers.push(queue.put_task(item, &PutOptions { timeout, ..options.clone() })?);
                count += 1;
            }
        }
        Ok(())
    };
    let code = add().as_ref().err().map_or("ok".to_owned(), code);
    json!({ "count": count, "code": code, "numbers": numbers })
}

fn shown(tasks: Vec<Lease<Value>>, leases: &Leases) -> Value {
    let mut leases = leases.lock().unwrap();
    let mut shown = |lease: Lease<Value>| {
        let (token, task, attempt) = (leases.len().to_string(), lease.task(), lease.attempt());
        let item = json!({ "json": &*lease });
        leases.push(Some(lease));
        json!({ "item": item, "token": token, "task": task, "attempt": attempt })
    };
    tasks.into_iter().map(&mut shown).collect()
}

fn settle(leases: &Leases, settlement: &Settlement) -> String {
    let place: usize = settlement.token.as_str().unwrap().parse().unwrap();
    let lease = leases.lock().unwrap()[place].take().expect("a lease is settled once");
    let (after, reason) = (settlement.after.map(Duration::from_secs_f64), &settlement.reason);
    let settled = match settlement.kind {
        "ack" => lease.ack(),
        "ack_with" => lease.ack_with(&settlement.result.as_ref().unwrap()["json"]),
        "nack" => lease.nack(after, reason),
        "give_up" => lease.give_up(reason),
        other => unimplemented!("this client does not {other}"),
    };
    settled.as_ref().err().map_or("ok".to_owned(), code)
}
