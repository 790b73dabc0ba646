//! The clients in Rust, as programs use them: calls are futures, and leases are values.

pub(crate) mod blocking;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use manyhands::wire::pickle::{Limits, from_payload};
use manyhands::{
    Client, ConnectOptions, Error, Info, Lease, Peek, Peeked, PutOptions, Queue, TaskState,
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::face::{Call, Face, Get, Item, Settlement};
use crate::support::{KEY, Server};

/// The async client. Items are plain data to it, whatever they travel as.
pub(crate) struct AsyncRust {
    runtime: Runtime,
    client: Client,
    queues: BTreeMap<String, Queue<Value>>,
    leases: Leases,
    pushed: BTreeMap<String, Pushed>,
    calls: BTreeMap<u64, Pin<Box<dyn Future<Output = Value>>>>,
    decided: BTreeMap<u64, Value>,
}

/// Leases that come ahead; one call at a time waits for the next.
type Pushed = Arc<tokio::sync::Mutex<manyhands::Leases<Value>>>;

/// Leases by the tokens that checks know them by.
#[derive(Clone, Default)]
struct Leases {
    leases: Arc<Mutex<BTreeMap<String, Lease<Value>>>>,
    last: Arc<AtomicU64>,
}

impl Leases {
    fn shown(&self, lease: Lease<Value>) -> Value {
        let token = self.last.fetch_add(1, Ordering::Relaxed).to_string();
        let (task, attempt) = (lease.task(), lease.attempt());
        let shown = json!({ "item": { "json": &*lease }, "token": token, "task": task, "attempt": attempt });
        self.leases.lock().unwrap().insert(token, lease);
        shown
    }

    fn take(&self, token: &Value) -> Option<Lease<Value>> {
        self.leases.lock().unwrap().remove(token.as_str().unwrap())
    }
}

impl Face for AsyncRust {
    fn connect(server: &Server, name: &str, _reader: u8) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = { runtime }.worker_threads(1).enable_all().build().unwrap();
        let options = ConnectOptions { session_name: name.to_owned(), ..ConnectOptions::default() };
        let address = format!("127.0.0.1:{}", server.port());
        let client = runtime.block_on(Client::connect_with(&address, KEY, options)).unwrap();
        let (queues, leases, pushed) = (BTreeMap::new(), Leases::default(), BTreeMap::new());
        let (calls, decided) = (BTreeMap::new(), BTreeMap::new());
        Self { runtime, client, queues, leases, pushed, calls, decided }
    }

    /// The call is on its way once its future was polled.
    fn start(&mut self, number: u64, call: Call<'_>) {
        let mut future = self.future(call);
        let _entered = self.runtime.enter();
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(outcome) => drop(self.decided.insert(number, outcome)),
            Poll::Pending => drop(self.calls.insert(number, future)),
        }
    }

    fn flush(&mut self) {}

    fn finish(&mut self, number: u64) -> Value {
        match self.calls.remove(&number) {
            Some(future) => self.runtime.block_on(future),
            None => self.decided.remove(&number).expect("it was started"),
        }
    }
}

impl AsyncRust {
    fn queue(&self, name: &str) -> Queue<Value> {
        self.queues[name].clone()
    }

    fn future(&mut self, call: Call<'_>) -> Pin<Box<dyn Future<Output = Value>>> {
        let (client, leases) = (self.client.clone(), self.leases.clone());
        match call {
            Call::Open { queue } => {
                let opened = self.runtime.block_on(client.queue(queue));
                let outcome = opened.map(|it| drop(self.queues.insert(queue.to_owned(), it)));
                Box::pin(async { told(outcome.map(|()| Value::Null)) })
            }
            Call::Put { queue, items, wait, numbers } => {
                let (queue, items) = (self.queue(queue), items.iter().map(owned).collect());
                Box::pin(put(queue, items, wait.map(Duration::from_secs_f64), numbers))
            }
            Call::Get(get) => {
                let Get { wait, max, leased, informed, .. } = get;
                let wait = wait.map(Duration::from_secs_f64);
                let (queue, max) = (self.queue(get.queue), usize::try_from(max).unwrap());
                Box::pin(async move {
                    told(match (leased, informed) {
                        (true, _) => queue.lease_many(max, wait).await.map(|tasks| {
                            tasks.into_iter().map(|task| leases.shown(task)).collect()
                        }),
                        (_, true) => queue.take_with_info(wait).await.map(|taken| {
                            let info = taken.info.as_ref().map(shown_info);
                            json!([{ "item": { "json": taken.item }, "info": info }])
                        }),
                        _ => queue.get_many(max, wait).await.map(|items| {
                            items
                                .into_iter()
                                .map(|item| json!({ "item": { "json": item } }))
                                .collect()
                        }),
                    })
                })
            }
            Call::Leases { queue, ahead } => {
                let pushed = self.queue(queue).leases(ahead).unwrap();
                self.pushed.insert(queue.to_owned(), Pushed::new(pushed.into()));
                Box::pin(async { Value::Null })
            }
            Call::Next { queue } => {
                let pushed = Arc::clone(&self.pushed[queue]);
                Box::pin(async move {
                    let next = pushed.lock().await.next().await.transpose();
                    told(next.map(|next| next.map_or(Value::Null, |it| json!([leases.shown(it)]))))
                })
            }
            Call::Leave { queue } => {
                self.pushed.remove(queue);
                Box::pin(async { Value::Null })
            }
            Call::Settle { settlements, .. } => Box::pin(async move {
                let mut codes = Vec::new();
                for settlement in settlements {
                    let lease = leases.take(&settlement.token).expect("a lease is settled once");
                    codes.push(settle(lease, &settlement).await);
                }
                codes.into()
            }),
            Call::TaskDone { queue, count } => {
                let queue = self.queue(queue);
                Box::pin(async move {
                    for _ in 0..count {
                        if let Err(error) = queue.task_done().await {
                            return told(Err(error));
                        }
                    }
                    Value::Null
                })
            }
            Call::Join { queue } => {
                let queue = self.queue(queue);
                Box::pin(async move { told(queue.join().await.map(Value::from)) })
            }
            Call::Size { queue } => {
                let queue = self.queue(queue);
                Box::pin(async move { told(queue.qsize().await.map(|size| json!([size, 0]))) })
            }
            Call::List { after } => {
                let after = after.to_owned();
                Box::pin(async move {
                    told(client.queues().await.map(|queues| {
                        let later: Vec<_> =
                            queues.into_iter().filter(|queue| queue.name > after).collect();
                        json!([later, false])
                    }))
                })
            }
            Call::Peek { queue, max, state } => {
                let (queue, state) = (self.queue(queue), TaskState::named(state).unwrap());
                let peek = Peek { max: usize::try_from(max).unwrap(), state, items: true };
                Box::pin(async move {
                    told(
                        queue
                            .peek(peek)
                            .await
                            .map(|tasks| tasks.iter().map(shown_peeked).collect()),
                    )
                })
            }
            Call::Redrive { queue, max, task } => {
                let (queue, max) = (self.queue(queue), usize::try_from(max).unwrap());
                Box::pin(async move {
                    told(match task {
                        Some(task) => {
                            queue.redrive_task(task).await.map(|moved| u64::from(moved).into())
                        }
                        None => queue.redrive(max).await.map(Value::from),
                    })
                })
            }
            Call::Purge { queue } => {
                let queue = self.queue(queue);
                Box::pin(async move { told(queue.purge().await.map(Value::from)) })
            }
            Call::Shutdown { queue, immediate } => {
                let queue = self.queue(queue);
                Box::pin(async move { told(queue.shutdown(immediate).await.map(Value::from)) })
            }
            Call::Drop { name, forced } => {
                let name = name.to_owned();
                Box::pin(
                    async move { told(client.drop_queue(&name, forced).await.map(Value::from)) },
                )
            }
            Call::Ping => {
                Box::pin(async move { told(client.number_of_objects().await.map(|_| Value::Null)) })
            }
            other => unimplemented!("this client has no {other:?}"),
        }
    }
}

/// An item and its options.
fn owned(item: &Item<'_>) -> (Value, PutOptions) {
    let time = |seconds: Option<f64>| seconds.map(Duration::from_secs_f64);
    let options = PutOptions {
        key: item.key.map(|key| key.as_bytes().to_vec()),
        delay: time(item.delay),
        priority: item.priority,
        expires: time(item.expires),
        timeout: None,
    };
    (item.value["json"].clone(), options)
}

/// A batch if nothing is said beside the items, nor asked for.
async fn put(
    queue: Queue<Value>,
    items: Vec<(Value, PutOptions)>,
    timeout: Option<Duration>,
    numbered: bool,
) -> Value {
    let is_plain = items.iter().all(|(_, options)| *options == PutOptions::default());
    let (mut count, mut numbers) = (0, Vec::new());
    let added = if is_plain && !numbered {
        put_many(&queue, &items, timeout, &mut count).await
    } else {
        put_each(&queue, items, timeout, (&mut count, &mut numbers)).await
    };
    let code = added.as_ref().err().map_or("ok".to_owned(), code);
    json!({ "count": count, "code": code, "numbers": numbers })
}

/// Goes on with what was not added, as a program does, until nothing is.
async fn put_many(
    queue: &Queue<Value>,
    items: &[(Value, PutOptions)],
    timeout: Option<Duration>,
    count: &mut usize,
) -> Result<(), Error> {
    while *count < items.len() {
        let rest = items[*count..].iter().map(|(item, _)| item);
        *count += match timeout {
            Some(timeout) => queue.put_many_timeout(rest, timeout).await?,
            None => queue.put_many(rest).await?,
        };
    }
    Ok(())
}

async fn put_each(
    queue: &Queue<Value>,
    items: Vec<(Value, PutOptions)>,
    timeout: Option<Duration>,
    (count, numbers): (&mut usize, &mut Vec<Option<u64>>),
) -> Result<(), Error> {
    for (item, options) in items {
        numbers.push(queue.put_task(&item, &PutOptions { timeout, ..options }).await?);
        *count += 1;
    }
    Ok(())
}

async fn settle(lease: Lease<Value>, settlement: &Settlement) -> String {
    let after = settlement.after.map(Duration::from_secs_f64);
    let reason = &settlement.reason;
    let settled = match settlement.kind {
        "ack" => lease.ack().await,
        "ack_with" => lease.ack_with(&settlement.result.as_ref().unwrap()["json"]).await,
        "nack" => lease.nack(after, reason).await,
        "give_up" => lease.give_up(reason).await,
        other => unimplemented!("this client does not {other}"),
    };
    settled.as_ref().err().map_or("ok".to_owned(), code)
}

fn told(outcome: Result<Value, Error>) -> Value {
    outcome.unwrap_or_else(|error| json!({ "refused": code(&error), "text": error.to_string() }))
}

/// The code that an error stands for; of several, its text.
fn code(error: &Error) -> String {
    match error {
        Error::Empty => "empty".into(),
        Error::Full => "full".into(),
        Error::ShutDown => "shut_down".into(),
        Error::UnknownQueue { .. } => "unknown_queue".into(),
        Error::Stale { .. } => "stale".into(),
        Error::SettledBefore => "settled_before".into(),
        Error::Remote { message, .. } if message.contains("too many times") => "too_many".into(),
        other => other.to_string(),
    }
}

fn shown_info(info: &Info) -> Value {
    let Info { queue, task, attempt, worker, waited, ran, history } = info;
    json!({
        "queue": queue, "task": task, "attempt": attempt, "worker": worker,
        "waited": waited.as_secs_f64(), "ran": ran.as_secs_f64(), "history": history,
    })
}

fn shown_peeked(task: &Peeked) -> Value {
    let item =
        task.item.as_ref().map(|item| from_payload::<Value>(item, &Limits::default()).unwrap());
    json!({ "item": { "json": item }, "task": task.task, "state": task.state.name() })
}
