//! A master: puts the tasks of an iterator, and has their results.
//!
//! Invariant: no more tasks than the window are put and not handed to the program, whatever is slow.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Ahead, Client, Queue};
use crate::Error;
use crate::answer::{self, Answer};
use crate::line::Asked;
use crate::verb::{PutOptions, Verb};
use crate::wire::native::{Fate, Settlement};
use crate::wire::pickle::{Limits, Payload, Value};

/// Tasks that are put and whose results the program has not had.
const WINDOW: usize = 1024;
/// Results that are taken by one request.
const RESULTS_MAX: usize = 256;
/// Why a result of somebody else's task is in the queue of dead letters.
const FOREIGN: &str = "it is the result of no task of the master that took it";

/// Has the tasks of an iterator worked on, by whatever workers there are.
///
/// ```no_run
/// # async fn example() -> Result<(), manyhands::Error> {
/// use manyhands::{Client, Master};
///
/// let client = Client::connect("10.0.0.7:5000", b"a key of 16 bytes or more").await?;
/// let master = Master::new(&client).queue("tasks").results("answers");
/// let mut squares = master.map::<u64, _>(1..=1_000_000u64).await?;
/// while let Some(square) = squares.next().await {
///     println!("{}", square?);
/// }
/// # Ok(())
/// # }
/// ```
///
/// The queue of tasks has to declare where results go, `results=answers`, and what is told of tasks
/// that are given up, `failures=results`; without the latter a task that always fails is waited for for
/// ever. A worker that dies is of no concern: its task goes to another one. Only one master at a time
/// can use a queue of results: one that is no result of its tasks goes to the dead letters.
#[derive(Debug, Clone)]
#[must_use = "a master does nothing until something is mapped"]
pub struct Master {
    client: Client,
    tasks: String,
    results: String,
    window: usize,
}

impl Master {
    /// A master whose tasks go to a server.
    pub fn new(client: &Client) -> Self {
        let client = client.clone();
        Self { client, tasks: String::new(), results: String::new(), window: WINDOW }
    }

    /// The queue of tasks.
    pub fn queue(self, name: impl Into<String>) -> Self {
        Self { tasks: name.into(), ..self }
    }

    /// The queue of results, which the queue of tasks names by `results=`.
    pub fn results(self, name: impl Into<String>) -> Self {
        Self { results: name.into(), ..self }
    }

    /// How many tasks may be put whose results the program has not had: 1,024. So much is taken from
    /// the iterator ahead, and so many results are kept until it is their turn.
    pub fn window(self, tasks: usize) -> Self {
        Self { window: tasks.max(1), ..self }
    }

    /// Has each item worked on. Results come in the order of the items, or
    /// [as they are made](Map::as_completed).
    ///
    /// # Errors
    ///
    /// [`Error::UnknownQueue`], or that the server was lost.
    pub async fn map<R, I>(&self, items: I) -> Result<Map<Items<I::IntoIter>, R>, Error>
    where
        I: IntoIterator,
        I::Item: Serialize,
        R: DeserializeOwned,
    {
        self.map_stream(Items(items.into_iter())).await
    }

    /// Has each item of a stream worked on, as it comes: results do not wait for items.
    ///
    /// # Errors
    ///
    /// Those of [`map`](Self::map).
    pub async fn map_stream<R, S>(&self, items: S) -> Result<Map<S, R>, Error>
    where
        S: Stream + Unpin,
        S::Item: Serialize,
        R: DeserializeOwned,
    {
        Ok(Map {
            tasks: self.client.queue(&self.tasks).await?,
            results: self.client.queue(&self.results).await?,
            items: Some(items),
            window: self.window,
            is_ordered: true,
            item: None,
            put: 0,
            returned: 0,
            puts: VecDeque::new(),
            take: None,
            taken: Vec::new(),
            numbers: HashMap::new(),
            arrived: BTreeMap::new(),
        })
    }
}

/// The items of an iterator, as a stream.
#[derive(Debug)]
pub struct Items<I>(I);

impl<I> Unpin for Items<I> {}

impl<I: Iterator> Stream for Items<I> {
    type Item = I::Item;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<I::Item>> {
        Poll::Ready(self.0.next())
    }
}

/// What an item or results have come to.
enum Came<T> {
    Item(Option<T>),
    Results(Result<Answer, Error>),
}

/// Results of the tasks that [`Master::map`] puts, as they are asked for.
///
/// Dropped before its end, it leaves tasks in the queue that workers will still do.
#[derive(Debug)]
pub struct Map<S, R> {
    tasks: Queue<Value>,
    results: Queue<R>,
    /// `None` once it has ended.
    items: Option<S>,
    window: usize,
    is_ordered: bool,
    /// The item that is put next.
    item: Option<Payload>,
    /// Items that were put.
    put: usize,
    /// Results that the program has had.
    returned: usize,
    /// Puts whose answers nobody has needed yet, with the indices of their items.
    puts: VecDeque<(usize, Ahead)>,
    /// The call that takes results.
    take: Option<Asked>,
    /// Results that were taken and not looked at.
    taken: Vec<answer::Task>,
    /// The index of the item of each task that is out.
    numbers: HashMap<u64, usize>,
    /// Results that wait until they are asked for.
    arrived: BTreeMap<usize, Result<R, Error>>,
}

impl<S, R> Map<S, R>
where
    S: Stream + Unpin,
    S::Item: Serialize,
    R: DeserializeOwned,
{
    /// Results as they are made, instead of in the order of their items.
    #[must_use]
    pub fn as_completed(self) -> Self {
        Self { is_ordered: false, ..self }
    }

    /// The next result; `None` after the last.
    ///
    /// Items of an iterator are taken here, so one that blocks, blocks this. A future of this that is
    /// dropped loses nothing: the next one goes on.
    ///
    /// # Errors
    ///
    /// [`Error::GivenUp`] for an item whose task failed too often, [`Error::Item`] for a result that
    /// is no `R`, and the next result can be asked for. That the server was lost, or [`Error::Data`] of
    /// an item, and there are no more results.
    pub async fn next(&mut self) -> Option<Result<R, Error>> {
        self.next_indexed().await.map(|(_, result)| result)
    }

    /// The next result, with the index of its item. An error that ends everything comes with the index
    /// of the result that was due.
    ///
    /// # Errors
    ///
    /// Those of [`next`](Self::next).
    pub async fn next_indexed(&mut self) -> Option<(usize, Result<R, Error>)> {
        loop {
            if let Some(due) = self.due() {
                self.returned += 1;
                return Some(due);
            }
            match self.advance().await {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => {
                    (self.items, self.item, self.take) = (None, None, None);
                    self.put = self.returned;
                    self.taken.clear();
                    self.arrived.clear();
                    return Some((self.returned, Err(error)));
                }
            }
        }
    }

    fn due(&mut self) -> Option<(usize, Result<R, Error>)> {
        let (&first, _) = self.arrived.first_key_value()?;
        if self.is_ordered && first != self.returned {
            return None;
        }
        self.arrived.pop_first()
    }

    /// Puts an item, or takes results. False if there are none to come.
    ///
    /// Nothing is taken out of `self` across an `.await`: the program may drop this future.
    async fn advance(&mut self) -> Result<bool, Error> {
        self.finish_last().await?;
        if self.items.is_none() && self.put == self.returned {
            return Ok(false);
        }
        if self.put > self.returned && self.take.is_none() {
            let take = Verb::take_leases(RESULTS_MAX);
            self.take = Some(self.results.reference.ask_once("lease", take)?);
        }
        match poll_fn(|context| self.poll_came(context)).await {
            Came::Item(Some(item)) => self.item = Some(self.tasks.reference.pickled(&item)?),
            Came::Item(None) => self.items = None,
            Came::Results(results) => {
                self.take = None;
                self.taken = results?.tasks()?;
            }
        }
        self.finish_last().await?;
        Ok(true)
    }

    /// Items first: a blocking client waits for results until they are there.
    fn poll_came(&mut self, context: &mut Context<'_>) -> Poll<Came<S::Item>> {
        let has_room = self.put - self.returned < self.window;
        if let Some(items) = self.items.as_mut().filter(|_| has_room)
            && let Poll::Ready(item) = Pin::new(items).poll_next(context)
        {
            return Poll::Ready(Came::Item(item));
        }
        match &mut self.take {
            Some(take) => Pin::new(take).poll(context).map(Came::Results),
            None => Poll::Pending,
        }
    }

    /// Is through with what came last.
    async fn finish_last(&mut self) -> Result<(), Error> {
        self.put_item().await?;
        self.arrive_all().await
    }

    async fn put_item(&mut self) -> Result<(), Error> {
        let Some(item) = self.item.clone() else { return Ok(()) };
        let put = Verb::put_with(item, &PutOptions::default(), true);
        self.puts.push_back((self.put, self.tasks.reference.ask_ahead(put).await?));
        self.item = None;
        self.put += 1;
        Ok(())
    }

    /// Notes the results that were taken, and says what becomes of each.
    async fn arrive_all(&mut self) -> Result<(), Error> {
        let about: Vec<_> = self.taken.iter().map(|task| self.about(task)).collect();
        for About { number, .. } in &about {
            if let Some(number) = number {
                self.find(*number).await?;
            }
        }
        let taken = std::mem::take(&mut self.taken);
        let mut settlements = Vec::with_capacity(taken.len());
        for (task, about) in taken.into_iter().zip(about) {
            let token = task.token;
            let fate = self.arrive(task, about);
            settlements.extend(token.map(|token| Settlement { token, fate }));
        }
        if !settlements.is_empty() {
            // Whoever dies now has had them.
            self.results.reference.tell(Verb::settle(settlements));
        }
        Ok(())
    }

    /// What a result is about.
    fn about(&self, task: &answer::Task) -> About {
        match (notice(&task.payload, self.tasks.name()), &task.info) {
            (Some((number, reasons)), _) => About { number: Some(number), reasons: Some(reasons) },
            (None, Some(info)) if info.queue == self.tasks.name() => {
                About { number: Some(info.task), reasons: None }
            }
            _ => About { number: None, reasons: None },
        }
    }

    /// Notes a result whose task is known, and says what becomes of it.
    fn arrive(&mut self, task: answer::Task, about: About) -> Fate {
        let index = about.number.and_then(|number| self.numbers.remove(&number));
        let Some(index) = index else {
            return Fate::GiveUp { reason: FOREIGN.to_owned() };
        };
        let result = match about.reasons {
            Some(reasons) => Err(Error::GivenUp { index, reasons }),
            None => self.results.reference.server().item(self.results.name(), task.payload),
        };
        self.arrived.insert(index, result);
        Fate::Ack { result: None }
    }

    /// Learns the index of the item of a task, if it is one of these. Its put was accepted, and so were
    /// those before it: their answers are waited for, if they are needed at all.
    async fn find(&mut self, number: u64) -> Result<(), Error> {
        while !self.numbers.contains_key(&number) {
            let Some((index, put)) = self.puts.front_mut() else { return Ok(()) };
            let (index, put) = (*index, put.await.and_then(Answer::number)?);
            self.puts.pop_front();
            self.numbers.extend(put.map(|number| (number, index)));
        }
        Ok(())
    }
}

/// What a result is about: a task of ours, and why it was given up if it was.
struct About {
    number: Option<u64>,
    reasons: Option<Vec<String>>,
}

/// What a notice says of a task that was given up: its number and why each attempt failed.
fn notice(payload: &Payload, queue: &str) -> Option<(u64, Vec<String>)> {
    let Ok(Value::Dict(notice)) = payload.value(&Limits::default()) else { return None };
    let field = |name: &str| {
        notice
            .iter()
            .find_map(|(key, value)| (*key == Value::Str(name.to_owned())).then_some(value))
    };
    let is_told = field("given_up") == Some(&Value::Bool(true))
        && field("queue") == Some(&Value::Str(queue.to_owned()));
    let (true, Some(Value::Int(task)), Some(Value::List(reasons))) =
        (is_told, field("task"), field("reasons"))
    else {
        return None;
    };
    let text = |reason: &Value| match reason {
        Value::Str(text) => text.clone(),
        other => other.to_string(),
    };
    Some((u64::try_from(*task).ok()?, reasons.iter().map(text).collect()))
}
