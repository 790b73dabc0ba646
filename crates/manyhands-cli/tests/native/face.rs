//! Clients as checks see them: calls and outcomes without a word of how they travel.

use std::cell::Cell;

use serde::Serialize;
use serde_json::Value;

use crate::support::Server;

/// A client of some kind. Calls are made in order and may be many at one time.
///
/// Outcomes are JSON. Of what failed, `{"refused": code, "text": …}`; of a `put`, `{"count", "code",
/// "numbers"}`; of `get` and pushes a list of `{"item", "token", "task", "attempt", "info"}`, the last
/// four only where they were asked for; of `settle` a list of codes, `ok` for what took effect; of
/// `size`, `[qsize, maxsize]`; of `list`, `[queues, more]`; of the rest, what the page says.
pub(crate) trait Face {
    /// Makes a client that is called `name` and reads pickles up to protocol `reader`.
    fn connect(server: &Server, name: &str, reader: u8) -> Self
    where
        Self: Sized;

    /// Makes a call.
    fn start(&mut self, number: u64, call: Call<'_>);

    /// Sees that all calls that were made are on their way.
    fn flush(&mut self);

    /// Waits for the outcome of a call; for the next one, of a credit.
    fn finish(&mut self, number: u64) -> Value;
}

/// What a client is told to do. Times are seconds; a wait of `None` is for ever, other times of `None`
/// are not said. Queues go by their names, once they are open.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub(crate) enum Call<'a> {
    Open {
        queue: &'a str,
    },
    Close {
        queue: &'a str,
    },
    Put {
        queue: &'a str,
        items: Vec<Item<'a>>,
        wait: Option<f64>,
        numbers: bool,
    },
    Get(Get<'a>),
    Settle {
        queue: &'a str,
        settlements: Vec<Settlement>,
        wait: Option<f64>,
    },
    /// Of programs, which count no credit: tasks come ahead; the next one, or `null` at the end; no more.
    Leases {
        queue: &'a str,
        ahead: u32,
    },
    Next {
        queue: &'a str,
    },
    Leave {
        queue: &'a str,
    },
    /// Of the call `of`, if that is given: more of it, or its end.
    Credit {
        queue: &'a str,
        credit: u32,
        hold: Option<f64>,
        ends: bool,
        of: Option<u64>,
    },
    Cancel {
        of: u64,
    },
    TaskDone {
        queue: &'a str,
        count: u32,
    },
    Join {
        queue: &'a str,
    },
    Size {
        queue: &'a str,
    },
    List {
        after: &'a str,
    },
    Peek {
        queue: &'a str,
        max: u32,
        state: &'a str,
    },
    Redrive {
        queue: &'a str,
        max: u64,
        task: Option<u64>,
    },
    Purge {
        queue: &'a str,
    },
    Shutdown {
        queue: &'a str,
        immediate: bool,
    },
    Drop {
        name: &'a str,
        forced: bool,
    },
    Configure {
        name: &'a str,
        options: &'a str,
    },
    Ping,
}

/// How tasks are taken.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Get<'a> {
    pub(crate) queue: &'a str,
    pub(crate) wait: Option<f64>,
    pub(crate) max: u32,
    /// 0: as many as the server gives.
    pub(crate) max_bytes: u32,
    pub(crate) leased: bool,
    pub(crate) informed: bool,
    pub(crate) hold: Option<f64>,
}

/// One that is put: `{"json": …}`, `{"bytes": base64}` or `{"pickle": base64}`, and its terms.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Item<'a> {
    pub(crate) value: Value,
    pub(crate) key: Option<&'a str>,
    pub(crate) delay: Option<f64>,
    pub(crate) priority: Option<i64>,
    pub(crate) expires: Option<f64>,
}

/// What becomes of a lease.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Settlement {
    pub(crate) kind: &'static str,
    pub(crate) token: Value,
    pub(crate) after: Option<f64>,
    pub(crate) reason: String,
    pub(crate) result: Option<Value>,
}

/// Where checks take place: makes servers and clients.
pub(crate) struct World {
    connect: fn(&Server, &str, u8) -> Box<dyn Face>,
}

impl World {
    pub(crate) fn of<F: Face + 'static>() -> Self {
        Self { connect: |server, name, reader| Box::new(F::connect(server, name, reader)) }
    }

    /// A client.
    pub(crate) fn client(&self, server: &Server) -> Client {
        self.named(server, "a client", 5)
    }

    pub(crate) fn named(&self, server: &Server, name: &str, reader: u8) -> Client {
        Client { face: (self.connect)(server, name, reader), last: Cell::new(0) }
    }
}

/// A client, with the calls of checks in short words.
pub(crate) struct Client {
    face: Box<dyn Face>,
    last: Cell<u64>,
}

impl Client {
    /// Makes a call, whose outcome is asked for by its number.
    pub(crate) fn start(&mut self, call: Call<'_>) -> u64 {
        let number = self.last.get() + 1;
        self.last.set(number);
        self.face.start(number, call);
        number
    }

    pub(crate) fn flush(&mut self) {
        self.face.flush();
    }

    pub(crate) fn finish(&mut self, number: u64) -> Value {
        self.face.finish(number)
    }

    pub(crate) fn call(&mut self, call: Call<'_>) -> Value {
        let number = self.start(call);
        self.finish(number)
    }

    /// Opens queues, which must be there.
    pub(crate) fn open(&mut self, queues: &[&str]) {
        for queue in queues {
            let opened = self.call(Call::Open { queue });
            assert!(opened["refused"].is_null(), "{queue}: {opened}");
        }
    }

    /// Puts items, all of which must be added.
    pub(crate) fn put(&mut self, queue: &str, items: Vec<Item<'_>>) -> Value {
        let count = items.len();
        let added = self.call(Call::Put { queue, items, wait: Some(0.0), numbers: true });
        assert_eq!((&added["code"], &added["count"]), (&"ok".into(), &count.into()));
        added["numbers"].clone()
    }

    pub(crate) fn get(&mut self, get: Get<'_>) -> Value {
        self.call(Call::Get(get))
    }

    /// The code for each settlement.
    pub(crate) fn settle(&mut self, queue: &str, settlements: Vec<Settlement>) -> Value {
        self.call(Call::Settle { queue, settlements, wait: Some(0.0) })
    }

    pub(crate) fn size(&mut self, queue: &str) -> Value {
        self.call(Call::Size { queue })
    }
}

/// Leases up to `max` tasks, of which there must be one within a minute.
pub(crate) fn lease(queue: &str, max: u32) -> Get<'_> {
    let wait = Some(60.0);
    Get { queue, wait, max, max_bytes: 0, leased: true, informed: false, hold: None }
}

/// Takes them for good.
pub(crate) fn take(queue: &str, max: u32) -> Get<'_> {
    Get { leased: false, ..lease(queue, max) }
}

/// Does not wait.
pub(crate) fn at_once(get: Get<'_>) -> Get<'_> {
    Get { wait: Some(0.0), ..get }
}

/// Items that are JSON.
pub(crate) fn json<T: Into<Value>>(values: impl IntoIterator<Item = T>) -> Vec<Item<'static>> {
    values.into_iter().map(|value| item(serde_json::json!({ "json": value.into() }))).collect()
}

pub(crate) fn item(value: Value) -> Item<'static> {
    Item { value, ..Item::default() }
}

/// Of a task that was leased.
pub(crate) fn settlement(kind: &'static str, task: &Value) -> Settlement {
    assert!(task["token"].is_string(), "{task}");
    let reason = String::new();
    Settlement { kind, token: task["token"].clone(), after: Some(0.0), reason, result: None }
}

/// The items of tasks.
pub(crate) fn items(tasks: &Value) -> Vec<Value> {
    let tasks = tasks.as_array().unwrap_or_else(|| panic!("no tasks: {tasks}"));
    tasks.iter().map(|task| task["item"].clone()).collect()
}

/// The same, of tasks whose items are JSON.
pub(crate) fn values(tasks: &Value) -> Vec<Value> {
    items(tasks).iter().map(|item| item["json"].clone()).collect()
}

/// Why a call was refused.
pub(crate) fn refused(outcome: &Value) -> &str {
    outcome["refused"].as_str().unwrap_or_else(|| panic!("not refused: {outcome}"))
}
