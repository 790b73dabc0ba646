//! The programs of a world of sessions: what they ask the client's core for, and what they are told.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use manyhands::Error;
use manyhands::internal::{Answer, Core, Fate, Next, Server, Settlement, Task, Verb};
use manyhands::wire::arguments::Wait;
use manyhands::wire::auth::AuthKey;
use manyhands::wire::native::PutTerms;
use manyhands::wire::pickle::{Dialect, Limits, Payload, from_payload, to_payload};
use manyhands::wire::token::LeaseToken;
use manyhands::{Address, ConnectOptions};

use super::link::{End, Link};
use super::{KEY, Sessions};
use crate::sim::model::{CallId, Item, Process, SessionNumber};
use crate::sim::world::{NAMES, RESULTS, TASKS, Verdict, Wrong, demand};

/// How long clients try to reach the server.
const RECONNECT_FOR: Duration = Duration::from_secs(24 * 3600);
/// Pauses between two attempts are no longer than the first, which each doubles, and the last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// What a credit may have taken from its queue before another client was served, at most.
const PUSHED_MAX: usize = 100;
/// The number of every caller: each program is one thread.
const ME: u64 = 1;

/// A task that a program has and settles by its token.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    pub(super) queue: usize,
    item: Item,
    token: LeaseToken,
}

/// What a program has asked for.
#[derive(Debug)]
enum Asked {
    Open,
    Close,
    /// Items; the first is the result of this task in hand.
    Put(usize, Vec<(CallId, Item)>, Option<(usize, Item)>),
    Get {
        queue: usize,
        call: CallId,
        max: usize,
        is_leased: bool,
    },
    Settle(Vec<(CallId, Held)>),
    Credit(usize, CallId),
}

/// A program with its client, and the connection that this has.
pub(super) struct Client {
    process: Process,
    session: SessionNumber,
    pub(super) core: Core,
    pub(super) link: Option<Link>,
    /// Attempts to connect since there was a connection.
    failures: u32,
    handles: Vec<u16>,
    asked: BTreeMap<u32, Asked>,
    /// What it took by plain `get`s and has not shown to be done, oldest first.
    hand: VecDeque<(usize, Item)>,
    pub(super) held: Vec<Held>,
    pub(super) credit: Option<u32>,
    /// Whether it does not read for a while.
    pub(super) is_stalled: bool,
    /// Whether it makes one plain call after the other; the others lease, and ask ahead.
    is_plain: bool,
    /// Whether a result was given up whose task it may have in hand.
    is_confused: bool,
}

impl Client {
    /// Whether it has a connection, or needs none.
    pub(super) fn is_content(&self) -> bool {
        self.link.is_some() || self.core.next() == Next::Rest(None)
    }

    /// How many queues are not open.
    fn is_opening(&self) -> bool {
        self.asked.values().any(|asked| matches!(asked, Asked::Open | Asked::Close))
    }

    /// Tasks of a queue that the program has, may have, or could start.
    pub(super) fn tasks_of(&self, queue: usize) -> usize {
        let hand = self.hand.iter().filter(|(of, _)| *of == queue).count();
        let held = self.held.iter().filter(|held| held.queue == queue).count();
        let asked = self.asked.values().map(|asked| match asked {
            Asked::Settle(acks) => acks.iter().filter(|(_, held)| held.queue == queue).count(),
            Asked::Put(_, _, Some((of, _))) => usize::from(*of == queue),
            _ => 0,
        });
        let unstarted = if queue == TASKS { self.unstarted() } else { 0 };
        hand + held + asked.sum::<usize>() + unstarted
    }

    pub(super) fn unstarted(&self) -> usize {
        self.credit.map_or(0, |id| self.core.unstarted(id))
    }

    /// Queues from which something is waited for.
    pub(super) fn waits_for(&self) -> impl Iterator<Item = usize> {
        self.asked.values().filter_map(|asked| match asked {
            Asked::Get { queue, .. } => Some(*queue),
            _ => None,
        })
    }

    /// What waits for something else than tasks: the queue that it needs room in, or none.
    pub(super) fn other_waits(&self) -> impl Iterator<Item = Option<usize>> {
        self.asked.values().filter_map(|asked| match asked {
            Asked::Get { .. } | Asked::Credit(..) => None,
            Asked::Put(queue, ..) => Some(Some(*queue)),
            Asked::Settle(_) => Some(Some(RESULTS)),
            Asked::Open | Asked::Close => Some(None),
        })
    }
}

/// An item, with padding that differs from one to the next.
fn text(item: Item) -> String {
    let padding = if item.is_multiple_of(23) { 3000 } else { item as usize * 37 % 300 };
    format!("{item}:{}", "x".repeat(padding))
}

fn payload(item: Item) -> Payload {
    to_payload(&text(item), Dialect::Python3).unwrap()
}

pub(super) fn item(of: &Payload) -> Item {
    let given: String = from_payload(of, &Limits::default()).unwrap();
    let item = given.split(':').next().unwrap().parse().unwrap();
    assert_eq!(given, text(item), "what was put is what is given");
    item
}

/// What a call came to that was refused; nothing if it may have been done.
fn why(error: &Error) -> Result<Option<&'static str>, Wrong> {
    Ok(match error {
        Error::Full => Some("Full"),
        Error::Empty => Some("Empty"),
        Error::Stale { .. } => Some("Stale"),
        Error::SettledBefore => Some("Duplicate"),
        Error::Remote { message, .. } if message.starts_with("stale: ") => Some("Stale"),
        Error::InDoubt { .. }
        | Error::Lost { .. }
        | Error::Connect { .. }
        | Error::TimedOut { .. }
        | Error::Closed { .. } => None,
        other => return Err(Wrong(format!("a client was told: {other:?}"))),
    })
}

impl Sessions {
    /// A program starts.
    pub(super) fn start(&mut self) {
        let process = self.next();
        let session = self.next();
        let options = ConnectOptions {
            reconnect_for: RECONNECT_FOR,
            session_name: format!("program {process}"),
            ..ConnectOptions::default()
        };
        let address: Address = "simulated:1".parse().unwrap();
        let server = Server::new(address, AuthKey::new(KEY), options);
        let mut client = Client {
            process,
            session,
            core: Core::new(&server),
            link: None,
            failures: 0,
            handles: vec![],
            asked: BTreeMap::new(),
            hand: VecDeque::new(),
            held: vec![],
            credit: None,
            is_stalled: false,
            is_plain: self.random.percent(self.plain_percent),
            is_confused: false,
        };
        for name in NAMES {
            let (handle, id) = client.core.open(name).unwrap();
            client.handles.push(handle);
            client.asked.insert(id, Asked::Open);
        }
        self.history.enter(process, session);
        self.clients.push(client);
    }

    // ---- what a program does

    /// A program does something.
    pub(super) fn act(&mut self, at: usize) {
        let client = &self.clients[at];
        if client.is_opening() {
            return;
        }
        if client.is_confused {
            return self.kill(at);
        }
        let asked_max = if client.is_plain { 0 } else { 6 };
        match (client.is_plain, self.random.below(12)) {
            (_, 0) => self.change_mind(at),
            _ if client.asked.len() > asked_max => {}
            (true, 1..3) => self.put(at),
            (true, 3..7) => self.get(at, TASKS),
            (true, 7) => self.get(at, RESULTS),
            (true, _) => self.answer(at),
            (false, 1) => self.put(at),
            (false, 2..4) => self.put_many(at),
            (false, 4..6) => self.lease(at),
            (false, 6..9) => self.settle(at),
            _ if client.credit.is_none() => self.subscribe(at),
            _ => self.begin_pushed(at),
        }
    }

    fn patience(&mut self) -> Wait {
        let seconds = Duration::from_secs(1 + self.random.next() % 4);
        [Wait::No, Wait::Forever, Wait::For(seconds)][self.random.below(3)]
    }

    fn new_item(&mut self) -> Item {
        self.items += 1;
        self.items
    }

    /// Notes what a put to a queue that was accepted, or an exit, shows to be done of what is in hand:
    /// nobody is told whether that is settled.
    fn note_shown(&mut self, at: usize, to: Option<usize>) {
        let Client { session, hand, .. } = &self.clients[at];
        let session = *session;
        let is_shown = |(of, _): &&(usize, Item)| Some(*of) != to && !self.is_strict(*of);
        let shown: Vec<_> = hand.iter().filter(is_shown).copied().collect();
        for (queue, item) in shown {
            let call = self.next();
            self.history.ack(session, call, queue, item, call, None);
        }
        let is_strict = self.is_strict(TASKS);
        self.clients[at].hand.retain(|(of, _)| Some(*of) == to || *of == TASKS && is_strict);
    }

    fn put(&mut self, at: usize) {
        let to = if !self.is_strict(TASKS) && self.random.percent(50) { RESULTS } else { TASKS };
        let (call, item, wait) = (self.next(), self.new_item(), self.patience());
        let is_keyed = self.random.percent(50);
        let key = is_keyed.then(|| item.to_le_bytes().to_vec());
        let terms = key.map(|key| Box::new(PutTerms { key: Some(key), ..PutTerms::default() }));
        let client = &mut self.clients[at];
        self.history.put_alone(client.session, call, to, item, false);
        let verb = Verb::Put { item: payload(item), terms, wait, numbered: false };
        let id = client.core.ask(ME, client.handles[to], verb);
        client.asked.insert(id, Asked::Put(to, vec![(call, item)], None));
    }

    fn put_many(&mut self, at: usize) {
        let len = [2, 3, 5, 40][self.random.below(4)];
        let items: Vec<_> = (0..len).map(|_| (self.next(), self.new_item())).collect();
        let wait = self.patience();
        let client = &mut self.clients[at];
        for (call, item) in &items {
            self.history.put_alone(client.session, *call, TASKS, *item, false);
        }
        let payloads = items.iter().map(|(_, item)| payload(*item)).collect();
        let verb = Verb::PutMany { items: payloads, wait };
        let id = client.core.ask(ME, client.handles[TASKS], verb);
        client.asked.insert(id, Asked::Put(TASKS, items, None));
    }

    fn get(&mut self, at: usize, queue: usize) {
        let (call, wait) = (self.next(), self.patience());
        let is_strict = self.is_strict(queue);
        let client = &mut self.clients[at];
        self.history.get(client.session, call, queue);
        let verb = Verb::Get { wait, max: 1, leased: false, hold: None, informed: false };
        let id = client.core.ask(ME, client.handles[queue], verb);
        client.asked.insert(id, Asked::Get { queue, call, max: 1, is_leased: false });
        if !is_strict {
            client.hand.retain(|(of, _)| *of != queue);
        }
    }

    /// The result of the oldest task in hand.
    fn answer(&mut self, at: usize) {
        let is_strict = self.is_strict(TASKS);
        let client = &self.clients[at];
        let oldest = client.hand.iter().position(|(of, _)| *of == TASKS).filter(|_| is_strict);
        let Some(oldest) = oldest else { return };
        let (call, item, wait) = (self.next(), self.new_item(), self.patience());
        let client = &mut self.clients[at];
        let answered = client.hand.remove(oldest);
        let task = answered.map(|(_, task)| task);
        self.history.put(client.session, call, RESULTS, item, task, false);
        let verb = Verb::Put { item: payload(item), terms: None, wait, numbered: false };
        let id = client.core.ask(ME, client.handles[RESULTS], verb);
        client.asked.insert(id, Asked::Put(RESULTS, vec![(call, item)], answered));
    }

    fn lease(&mut self, at: usize) {
        let queue = if self.random.percent(85) { TASKS } else { RESULTS };
        let (call, wait) = (self.next(), self.patience());
        let max = [1, 2, 4, 30][self.random.below(4)];
        let client = &mut self.clients[at];
        self.history.take(client.session, call, queue, max);
        let verb = Verb::Get { wait, max, leased: true, hold: None, informed: false };
        let id = client.core.ask(ME, client.handles[queue], verb);
        client.asked.insert(id, Asked::Get { queue, call, max, is_leased: true });
    }

    /// Settles some of the tasks that the program has, all in one call.
    fn settle(&mut self, at: usize) {
        let Some(Held { queue, .. }) = self.clients[at].held.first().copied() else { return };
        let (is_strict, is_nack) = (self.is_strict(queue), self.random.percent(15));
        let odds = [30, 100][self.random.below(2)];
        let random = &mut self.random;
        let held = &mut self.clients[at].held;
        let some: Vec<_> =
            held.extract_if(.., |held| held.queue == queue && random.percent(odds)).collect();
        let (mut settlements, mut asked) = (vec![], vec![]);
        let session = self.clients[at].session;
        for held in some {
            let Held { item, token, .. } = held;
            let call = self.next();
            let fate = if is_nack {
                self.history.nack(session, call, queue, item, token.lease);
                Fate::Nack { delay: Some(Duration::ZERO), reason: String::new() }
            } else {
                let result = is_strict.then(|| self.new_item());
                self.history.ack(session, call, queue, item, token.lease, result);
                Fate::Ack { result: result.map(payload) }
            };
            settlements.push(Settlement { token, fate });
            asked.push((call, held));
        }
        if settlements.is_empty() {
            return;
        }
        let wait = if is_strict && !is_nack { Wait::Forever } else { Wait::No };
        let client = &mut self.clients[at];
        let id = client.core.ask(ME, client.handles[queue], Verb::Settle { settlements, wait });
        client.asked.insert(id, Asked::Settle(asked));
    }

    fn subscribe(&mut self, at: usize) {
        if !self.has_credit {
            return;
        }
        let (call, ahead) = (self.next(), [1, 2, 5][self.random.below(3)]);
        let client = &mut self.clients[at];
        self.history.take(client.session, call, TASKS, PUSHED_MAX);
        let id = client.core.subscribe(client.handles[TASKS], ahead);
        client.asked.insert(id, Asked::Credit(TASKS, call));
        client.credit = Some(id);
    }

    /// Begins with some of the tasks that were pushed.
    fn begin_pushed(&mut self, at: usize) {
        for _ in 0..=self.random.below(3) {
            let client = &mut self.clients[at];
            let Some(id) = client.credit else { return };
            let Some(task) = client.core.next_task(id) else { return };
            let Some(Asked::Credit(queue, call)) = client.asked.get(&id) else { return };
            let (queue, call) = (*queue, *call);
            self.give(at, queue, call, "also", &task);
            self.see("a pushed task was started");
        }
    }

    /// Gives a call or its credit up.
    fn change_mind(&mut self, at: usize) {
        let client = &mut self.clients[at];
        if let Some(id) = client.credit.take_if(|_| self.random.percent(40)) {
            client.asked.remove(&id);
            return client.core.unsubscribe(id);
        }
        let waits = client.asked.iter().filter(|(_, asked)| matches!(asked, Asked::Get { .. }));
        let waits: Vec<_> = waits.map(|(id, _)| *id).collect();
        if waits.is_empty() {
            return;
        }
        let id = waits[self.random.below(waits.len())];
        client.asked.remove(&id);
        client.core.cancel(id);
        self.see("a call was cancelled");
    }

    // ---- how a program ends

    /// A program is killed.
    pub(super) fn kill(&mut self, at: usize) {
        let client = self.clients.swap_remove(at);
        self.history.killed(client.process);
        if let Some(link) = client.link {
            let end = [End::Closed, End::Broken][self.random.below(2)];
            link.leave(end, &mut self.random);
            self.orphans.push(link);
        }
    }

    /// A program closes all that it has, and exits once that is said to be done.
    pub(super) async fn exit(&mut self, at: usize) -> Verdict {
        if self.clients[at].is_plain && !self.clients[at].asked.is_empty() {
            // It waits for its call.
            self.kill(at);
            return Ok(());
        }
        self.note_shown(at, None);
        let client = &mut self.clients[at];
        let ids = client.core.close();
        client.asked.clear();
        client.asked.extend(ids.iter().map(|id| (*id, Asked::Close)));
        let is_told = !ids.is_empty();
        for _ in 0..50 {
            self.pump(usize::MAX).await?;
            self.sync();
            if self.clients[at].asked.is_empty() {
                break;
            }
        }
        if is_told && self.clients[at].asked.is_empty() && self.clients[at].link.is_some() {
            let client = self.clients.swap_remove(at);
            self.history.exited(client.process);
            if let Some(link) = client.link {
                link.leave(End::Closed, &mut self.random);
                self.orphans.push(link);
            }
            self.see("a program exited");
        } else {
            self.kill(at);
        }
        Ok(())
    }

    /// What a program took before it lost its connection may be with others now, and calls that are
    /// made again are other calls.
    pub(super) fn renew(&mut self, at: usize) {
        self.clients[at].session = self.next();
        let Client { process, session, .. } = self.clients[at];
        self.history.enter(process, session);
        let ids: Vec<_> = self.clients[at].asked.keys().copied().collect();
        for id in ids {
            let renewed = self.next();
            match self.clients[at].asked.get_mut(&id) {
                Some(Asked::Get { queue, call, max, is_leased }) => {
                    *call = renewed;
                    match is_leased {
                        true => self.history.take(session, renewed, *queue, *max),
                        false => self.history.get(session, renewed, *queue),
                    }
                }
                Some(Asked::Credit(queue, call)) => {
                    *call = renewed;
                    self.history.take(session, renewed, *queue, PUSHED_MAX);
                }
                _ => {}
            }
        }
    }

    // ---- the connection

    /// Waits as long as a client does before it connects, and connects.
    pub(super) async fn connect(&mut self, at: usize) -> Verdict {
        let client = &mut self.clients[at];
        if client.link.is_some() {
            return Ok(());
        }
        let pause = PAUSES.1.min(PAUSES.0 * 2u32.saturating_pow(client.failures.min(8)));
        client.failures += 1;
        // Pauses are random in part, and no longer than that.
        self.pass(pause).await?;
        let client = &mut self.clients[at];
        if client.core.next() == Next::Connect {
            client.core.connecting();
            let link = self.serve_new();
            let client = &mut self.clients[at];
            client.link = Some(link);
            client.core.connected();
        }
        Ok(())
    }

    /// Moves bytes of a client, up to so many of either direction. Tells whether there were any.
    pub(super) fn move_bytes(&mut self, at: usize, max: usize) -> Result<bool, Wrong> {
        let client = &mut self.clients[at];
        let Some(link) = &client.link else {
            self.hear(at)?;
            return Ok(false);
        };
        let bytes = client.core.outbound_within(max);
        let mut is_moved = !bytes.is_empty();
        let mut is_lost = !link.write(&bytes) && is_moved;
        is_moved |= link.move_up(max);
        if is_lost {
            client.core.broken(std::io::ErrorKind::BrokenPipe.into());
        } else if !client.is_stalled {
            let (come, end) = link.read(max);
            is_moved |= !come.is_empty();
            if !come.is_empty() {
                client.core.received(&come);
            }
            match end {
                Some(End::Closed) => client.core.ended(),
                Some(End::Broken) => client.core.broken(std::io::ErrorKind::ConnectionReset.into()),
                None => {}
            }
            is_lost = end.is_some();
        }
        client.core.tick();
        if is_lost || !client.core.is_connected() {
            let link = client.link.take();
            client.is_stalled = false;
            if let Some(link) = link {
                link.leave(End::Broken, &mut self.random);
                self.orphans.push(link);
            }
            self.hear(at)?;
            self.renew(at);
            self.see("a connection was lost");
            return Ok(true);
        }
        self.hear(at)?;
        Ok(is_moved)
    }

    // ---- what a program is told

    fn hear(&mut self, at: usize) -> Verdict {
        while let Some(id) = self.clients[at].core.next_decided() {
            let client = &mut self.clients[at];
            let Some(answer) = client.core.answer(id) else { continue };
            if answer.is_ok() {
                // Only a connection that has begun brings one.
                client.failures = 0;
            }
            let Some(asked) = client.asked.remove(&id) else { continue };
            match asked {
                Asked::Open | Asked::Close => {
                    answer.or_else(|error| why(&error).map(|_| Answer::Done))?;
                }
                Asked::Credit(..) => {
                    client.credit = None;
                    answer.or_else(|error| why(&error).map(|_| Answer::Done))?;
                }
                Asked::Put(queue, items, answered) => {
                    self.told(at, queue, items, answered, answer)?
                }
                Asked::Get { queue, call, .. } => self.taken(at, queue, call, answer)?,
                Asked::Settle(asked) => self.settled(at, asked, answer)?,
            }
        }
        Ok(())
    }

    fn told(
        &mut self,
        at: usize,
        queue: usize,
        items: Vec<(CallId, Item)>,
        answered: Option<(usize, Item)>,
        answer: Result<Answer, Error>,
    ) -> Verdict {
        let (count, refusal) = match answer {
            Ok(Answer::Added(added)) => (added.count, added.refusal),
            Ok(other) => return Err(Wrong(format!("a put was answered {other:?}"))),
            Err(error) => (0, Some(error)),
        };
        for (call, _) in items.iter().take(count) {
            self.history.done(*call);
        }
        if count > 0 {
            self.note_shown(at, Some(queue));
        }
        let Some(refusal) = refusal else { return Ok(()) };
        let Some(why) = why(&refusal)? else {
            self.clients[at].is_confused |= answered.is_some();
            return Ok(());
        };
        for (call, _) in items.iter().skip(count) {
            self.history.refused(*call, why);
        }
        if let (Some(answered), "Full") = (answered, why) {
            self.clients[at].hand.push_front(answered);
        }
        Ok(())
    }

    fn taken(
        &mut self,
        at: usize,
        queue: usize,
        call: CallId,
        answer: Result<Answer, Error>,
    ) -> Verdict {
        match answer {
            Ok(Answer::Tasks(tasks)) => {
                for (nth, task) in tasks.iter().enumerate() {
                    let verb = if nth + 1 == tasks.len() { "yes" } else { "also" };
                    self.give(at, queue, call, verb, task);
                }
                demand!(!tasks.is_empty(), "{call} was given nothing");
            }
            Ok(other) => return Err(Wrong(format!("a get was answered {other:?}"))),
            Err(error) => {
                if let Some(why) = why(&error)? {
                    self.history.refused(call, why);
                }
            }
        }
        Ok(())
    }

    /// A program is given a task.
    fn give(&mut self, at: usize, queue: usize, call: CallId, verb: &str, task: &Task) {
        let (item, client) = (item(&task.payload), &mut self.clients[at]);
        let token = task.token.expect("no queue here is settled by handing out");
        self.history.taken(verb, call, item, token.attempt, Some(token.lease));
        match client.is_plain {
            true => client.hand.push_back((queue, item)),
            false => client.held.push(Held { queue, item, token }),
        }
    }

    fn settled(
        &mut self,
        at: usize,
        asked: Vec<(CallId, Held)>,
        answer: Result<Answer, Error>,
    ) -> Verdict {
        let settled = match answer {
            Ok(Answer::Settled(settled)) => settled.into_iter().map(Some).collect(),
            Ok(other) => return Err(Wrong(format!("settlements were answered {other:?}"))),
            Err(error) => {
                why(&error)?;
                asked.iter().map(|_| None).collect::<Vec<_>>()
            }
        };
        demand!(settled.len() == asked.len(), "{settled:?} for {asked:?}");
        for ((call, held), settled) in asked.into_iter().zip(settled) {
            let refusal = settled.map(|settled| settled.map_err(|error| why(&error)));
            match refusal {
                Some(Ok(())) => self.history.done(call),
                Some(Err(why)) => match why? {
                    Some(why) => self.history.refused(call, why),
                    None => self.clients[at].held.push(held),
                },
                // Perhaps it is settled; if not, it can be tried again.
                None => self.clients[at].held.push(held),
            }
        }
        Ok(())
    }
}
