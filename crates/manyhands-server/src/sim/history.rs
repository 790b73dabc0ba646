//! What clients asked and were answered, and the judge of it: every task is accounted for once, and
//! a queue keeps its order. Simulated clients and real processes write the same lines.
//!
//! A line is `TIME VERB ARGUMENTS…`; times are nanoseconds of one clock, names have no spaces.
//!
//! | verb | arguments | meaning |
//! |---|---|---|
//! | `queue` | `NAME RULES…` | there is a queue; see [`Rules`] |
//! | `session` | `PROCESS SESSION` | a session of this process begins, and ends those before |
//! | `put` | `SESSION CALL QUEUE ITEM [of=TASK] [special] [alone]` | asked; the result of `TASK`; with a delay, an expiry or a key; shows nothing to be done |
//! | `get`, `lease` | `SESSION CALL QUEUE [MAX]` | asked for one, or for so many; to be settled by their tokens alone |
//! | `done`, `join` | `SESSION CALL QUEUE` | asked |
//! | `ack` | `SESSION CALL QUEUE ITEM LEASE [RESULTS RESULT]` | asked; with a result, which is put by that |
//! | `nack` | `SESSION CALL QUEUE ITEM LEASE` | asked |
//! | `redrive`, `purge` | `SESSION CALL QUEUE` | asked |
//! | `also` | `CALL ITEM ATTEMPT [LEASE]` | this will be given, with what the `yes` says |
//! | `yes` | `CALL [ITEM ATTEMPT [LEASE]]` | it was done; this was given |
//! | `no` | `CALL WHY` | it was refused, or there was nothing; `Stale`: as a result that came too late; `Duplicate`: as the token was used before |
//! | `exited`, `killed` | `PROCESS` | of its own accord, or not |
//! | `crash` | | the server was killed, and all sessions with it |
//! | `left` | `QUEUE ITEM` | found at the end, when nobody is there any more |
//! | `wrong` | `TEXT…` | what a client saw that must not be |
//!
//! A call without an answer may have been done or not.

// So that it is found from wherever this file is included.
#[path = "history/verdict.rs"]
mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

type Time = u64;

/// What is known of a queue.
#[derive(Debug, Default, Clone)]
struct Rules {
    /// `results=QUEUE`: a task is settled by its result alone.
    results: Option<String>,
    /// `dead=QUEUE`: where tasks go that are given up.
    dead: Option<String>,
    /// `cpython`: what is handed out is settled.
    settles_at_once: bool,
    /// `sorted`: it is not first in, first out.
    is_sorted: bool,
    /// `expires`: what nobody takes in time is gone.
    expires: bool,
    /// `max_run=NANOS`: what a client says of a task that it had for longer may come too late.
    max_run: Option<Time>,
}

/// What the judge counted.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) accepted: usize,
    pub(crate) in_doubt: usize,
    pub(crate) delivered: usize,
    /// Deliveries of items that had been delivered before.
    pub(crate) again: usize,
    pub(crate) results: usize,
    pub(crate) dead: usize,
    pub(crate) left: usize,
    pub(crate) killed: usize,
    pub(crate) crashes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// None came.
    Doubt,
    Yes(Time),
    No,
}

#[derive(Debug)]
struct Put {
    asked: Time,
    answer: Answer,
    of: Option<String>,
    is_special: bool,
    is_alone: bool,
}

#[derive(Debug)]
struct Delivery {
    asked: Time,
    at: Time,
    settled: Settled,
}

/// Whether the client showed that it was through with an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settled {
    No,
    /// It asked for something that shows it, and was not answered.
    Perhaps,
    At(Time),
}

#[derive(Debug, Default)]
struct Item {
    put: Option<Put>,
    deliveries: Vec<Delivery>,
    left: usize,
    acks: Vec<Ack>,
    /// `task_done` may have been called for it.
    perhaps_done: bool,
}

/// What somebody with a token asked for.
#[derive(Debug)]
struct Ack {
    lease: String,
    answer: Answer,
    has_result: bool,
}

/// A queue and an item.
type Name = (String, String);

#[derive(Debug)]
enum Asked {
    Put(Name),
    Get(String),
    /// The same, but not settled by what the session does next.
    Lease(String),
    Done(String),
    /// This item, by this ack, with this result.
    Ack(Name, usize, Option<Name>),
    Purge(String),
    Join,
}

#[derive(Debug)]
struct Call {
    session: String,
    at: Time,
    asked: Asked,
    /// How many items it may take.
    max: usize,
    /// What it shows to be done, if it happens.
    shows: Vec<(Name, usize)>,
}

#[derive(Debug, Default)]
struct Session {
    /// What it took and is not through with: item and delivery.
    hand: Vec<(Name, usize)>,
}

#[derive(Debug, Default)]
struct Judge {
    queues: BTreeMap<String, Rules>,
    items: BTreeMap<Name, Item>,
    calls: BTreeMap<String, Call>,
    sessions: BTreeMap<String, Session>,
    /// Of each process, the one that is there.
    current: BTreeMap<String, String>,
    /// Deliveries that a clean exit settled.
    exits: Vec<(Name, usize)>,
    /// Until when each queue may have been purged.
    purged: BTreeMap<String, Time>,
    /// Queues whose dead letters may have gone back.
    redriven: BTreeSet<String>,
    wrong: Vec<String>,
    counts: Counts,
}

/// Judges a history; the lines may come from several files, in any order.
///
/// # Errors
///
/// Everything that is wrong with it, one line each.
pub(crate) fn judge<'l>(lines: impl Iterator<Item = &'l str>) -> Result<Counts, String> {
    let mut lines: Vec<_> = lines.filter_map(split_time).collect();
    lines.sort_by_key(|(at, _)| *at);
    let mut judge = Judge::default();
    for (at, line) in lines {
        if judge.read(at, line).is_none() {
            judge.wrong.push(format!("no line of a history: {line}"));
        }
    }
    judge.close();
    if judge.wrong.is_empty() { Ok(judge.counts) } else { Err(judge.wrong.join("\n")) }
}

fn split_time(line: &str) -> Option<(Time, &str)> {
    let (at, rest) = line.split_once(' ')?;
    Some((at.parse().ok()?, rest))
}

impl Judge {
    fn read(&mut self, at: Time, line: &str) -> Option<()> {
        let mut words = line.split_whitespace();
        let verb = words.next()?;
        let mut word = || words.next().map(str::to_owned);
        match verb {
            "queue" => self.queue(word()?, words),
            "session" => self.session(&word()?, word()?),
            "put" => {
                let (session, call, name) = (word()?, word()?, (word()?, word()?));
                let rest: Vec<_> = words.collect();
                let of = rest.iter().find_map(|word| word.strip_prefix("of=")).map(str::to_owned);
                let [is_special, is_alone] = ["special", "alone"].map(|word| rest.contains(&word));
                let put = Put { asked: at, answer: Answer::Doubt, of, is_special, is_alone };
                self.item(&name).put = Some(put);
                self.ask(at, call, session, Asked::Put(name));
            }
            "get" | "lease" => {
                let (session, call, queue) = (word()?, word()?, word()?);
                let max = word().map_or(Some(1), |max| max.parse().ok())?;
                let is_get = verb == "get";
                let asked = if is_get { Asked::Get(queue) } else { Asked::Lease(queue) };
                self.ask(at, call.clone(), session, asked);
                self.calls.get_mut(&call)?.max = max;
            }
            "ack" => {
                let (session, call, name) = (word()?, word()?, (word()?, word()?));
                let lease = word()?;
                let result = word().and_then(|queue| Some((queue, word()?)));
                let (answer, has_result) = (Answer::Doubt, result.is_some());
                if let Some(result) = &result {
                    let (of, is_special, is_alone) = (Some(name.1.clone()), false, true);
                    self.item(result).put =
                        Some(Put { asked: at, answer, of, is_special, is_alone });
                }
                let acks = &mut self.item(&name).acks;
                acks.push(Ack { lease, answer, has_result });
                let ack = acks.len() - 1;
                self.ask(at, call, session, Asked::Ack(name, ack, result));
            }
            "nack" => {
                let (session, call) = (word()?, word()?);
                self.ask(at, call, session, Asked::Join);
            }
            "redrive" => {
                let (session, call) = (word()?, word()?);
                self.redriven.insert(word()?);
                self.ask(at, call, session, Asked::Join);
            }
            "purge" => {
                let (session, call, queue) = (word()?, word()?, word()?);
                self.purged.insert(queue.clone(), Time::MAX);
                self.ask(at, call, session, Asked::Purge(queue));
            }
            "also" => {
                let (call, item, _attempt) = (word()?, word()?, word()?);
                self.give(at, &call, item)?;
            }
            "done" => {
                let (session, call) = (word()?, word()?);
                self.ask(at, call, session, Asked::Done(word()?));
            }
            "join" => {
                let (session, call) = (word()?, word()?);
                self.ask(at, call, session, Asked::Join);
            }
            "yes" => self.yes(at, &word()?, word())?,
            "no" => self.no(at, &word()?, &word()?)?,
            "exited" => self.exited(at, &word()?),
            "killed" => {
                self.counts.killed += 1;
                self.current.remove(&word()?);
            }
            "crash" => {
                self.counts.crashes += 1;
                self.current.clear();
                // Who exits is told nothing, so the server may have forgotten it.
                for (name, delivery) in std::mem::take(&mut self.exits) {
                    let item = self.items.get_mut(&name);
                    let delivery = item.and_then(|item| item.deliveries.get_mut(delivery));
                    delivery.into_iter().for_each(|it| it.settled = Settled::Perhaps);
                }
            }
            "left" => self.item(&(word()?, word()?)).left += 1,
            "wrong" => self.wrong.push(line.into()),
            _ => return None,
        }
        Some(())
    }

    fn queue<'w>(&mut self, name: String, words: impl Iterator<Item = &'w str>) {
        let mut rules = Rules::default();
        for word in words {
            match word.split_once('=') {
                Some(("results", queue)) => rules.results = Some(queue.into()),
                Some(("dead", queue)) => rules.dead = Some(queue.into()),
                Some(("max_run", nanos)) => rules.max_run = nanos.parse().ok(),
                _ => {
                    rules.settles_at_once |= word == "cpython";
                    rules.is_sorted |= word == "sorted";
                    rules.expires |= word == "expires";
                }
            }
        }
        self.queues.insert(name, rules);
    }

    fn session(&mut self, process: &str, session: String) {
        let before = self.current.insert(process.into(), session.clone());
        let hand = before.and_then(|before| self.sessions.remove(&before));
        // Whether what was in its hand moves on or goes back, nobody can tell from outside.
        for (name, delivery) in hand.into_iter().flat_map(|session| session.hand) {
            self.settle(&name, delivery, Settled::Perhaps);
        }
        self.sessions.insert(session, Session::default());
    }

    fn item(&mut self, name: &Name) -> &mut Item {
        self.items.entry(name.clone()).or_default()
    }

    fn is_strict(&self, queue: &str) -> bool {
        self.queues.get(queue).is_some_and(Rules::is_strict)
    }

    fn ask(&mut self, at: Time, call: String, session: String, asked: Asked) {
        let mut shows = self.shown_by(&session, &asked);
        for (name, delivery) in &shows {
            self.settle(name, *delivery, Settled::Perhaps);
            if matches!(asked, Asked::Done(_)) {
                self.item(name).perhaps_done = true;
            }
        }
        if !matches!(asked, Asked::Put(_)) {
            self.let_go(&session, &shows);
        }
        // What a call settled that was given up, no answer to a later one waits for.
        let given_up: Vec<_> = self.calls.values().filter(|call| call.session == session).collect();
        shows.retain(|shown| !given_up.iter().any(|call| call.shows.contains(shown)));
        self.calls.insert(call, Call { session, at, asked, max: 1, shows });
    }

    fn let_go(&mut self, session: &str, shown: &[(Name, usize)]) {
        if let Some(session) = self.sessions.get_mut(session) {
            session.hand.retain(|held| !shown.contains(held));
        }
    }

    /// What a session shows to be through with by asking this.
    fn shown_by(&self, session: &str, asked: &Asked) -> Vec<(Name, usize)> {
        let Some(session) = self.sessions.get(session) else { return vec![] };
        let hand = session.hand.iter().cloned();
        match asked {
            Asked::Join | Asked::Lease(_) | Asked::Ack(..) | Asked::Purge(_) => vec![],
            Asked::Get(queue) if self.is_strict(queue) => vec![],
            Asked::Get(queue) => hand.filter(|((from, _), _)| from == queue).collect(),
            Asked::Done(queue) => hand.filter(|((from, _), _)| from == queue).take(1).collect(),
            Asked::Put((to, item)) => {
                let put =
                    self.items.get(&(to.clone(), item.clone())).and_then(|it| it.put.as_ref());
                if put.is_some_and(|put| put.is_alone) {
                    return vec![];
                }
                let of = put.and_then(|put| put.of.clone());
                let is_shown = |from: &str, item: &str| {
                    if self.is_strict(from) { of.as_deref() == Some(item) } else { from != to }
                };
                hand.filter(|((from, item), _)| is_shown(from, item)).collect()
            }
        }
    }

    fn settle(&mut self, name: &Name, delivery: usize, settled: Settled) {
        let max_run = self.queues.get(&name.0).and_then(|rules| rules.max_run);
        let item = self.items.get_mut(name);
        let Some(delivery) = item.and_then(|item| item.deliveries.get_mut(delivery)) else {
            return;
        };
        delivery.settled = match (delivery.settled, settled) {
            (Settled::At(at), _) => Settled::At(at),
            (_, Settled::At(at)) if max_run.is_some_and(|max| at > delivery.asked + max) => {
                Settled::Perhaps
            }
            _ => settled,
        };
    }

    /// The call was answered in a way that shows what it asked to have happened.
    fn show(&mut self, at: Time, session: &str, shown: &[(Name, usize)]) {
        for (name, delivery) in shown {
            self.settle(name, *delivery, Settled::At(at));
        }
        self.let_go(session, shown);
    }

    fn yes(&mut self, at: Time, call: &str, given: Option<String>) -> Option<()> {
        if let Some(given) = given {
            self.give(at, call, given)?;
        }
        let Call { session, asked, shows, .. } = self.calls.remove(call)?;
        self.show(at, &session, &shows);
        match asked {
            Asked::Put(name) => {
                self.item(&name).put.as_mut()?.answer = Answer::Yes(at);
                self.counts.accepted += 1;
            }
            Asked::Ack(name, ack, result) => {
                self.item(&name).acks.get_mut(ack)?.answer = Answer::Yes(at);
                if let Some(result) = result {
                    self.item(&result).put.as_mut()?.answer = Answer::Yes(at);
                    self.counts.accepted += 1;
                }
            }
            Asked::Purge(queue) => {
                let is_other =
                    |call: &Call| matches!(&call.asked, Asked::Purge(other) if *other == queue);
                if !self.calls.values().any(is_other) {
                    self.purged.insert(queue, at);
                }
            }
            _ => {}
        }
        Some(())
    }

    /// A call is given an item, though not by that alone told so.
    fn give(&mut self, at: Time, call: &str, given: String) -> Option<()> {
        let Call { session, at: asked, asked: of, .. } = self.calls.get(call)?;
        let (session, asked) = (session.clone(), *asked);
        let (queue, is_plain) = match of {
            Asked::Get(queue) => (queue.clone(), true),
            Asked::Lease(queue) => (queue.clone(), false),
            _ => return None,
        };
        let settles_at_once = self.queues.get(&queue)?.settles_at_once && is_plain;
        let settled = if settles_at_once { Settled::At(at) } else { Settled::No };
        let name = (queue, given);
        let deliveries = &mut self.item(&name).deliveries;
        deliveries.push(Delivery { asked, at, settled });
        let delivery = deliveries.len() - 1;
        self.counts.delivered += 1;
        self.counts.again += usize::from(delivery > 0);
        if let Some(session) = self.sessions.get_mut(&session).filter(|_| is_plain) {
            session.hand.push((name, delivery));
        }
        Some(())
    }

    /// An ack was refused, and this is why.
    fn refuse(&mut self, name: &Name, ack: usize, why: &str) -> Option<()> {
        let acks = &mut self.item(name).acks;
        acks.get_mut(ack)?.answer = Answer::No;
        let lease = &acks.get(ack)?.lease;
        let is_same = |ack: &&Ack| ack.lease == *lease && ack.answer != Answer::No;
        if why == "Duplicate" && acks.iter().find(is_same).is_none() {
            let text = format!("{} of {}: no ack by token {lease} was kept", name.1, name.0);
            self.wrong.push(text);
        }
        Some(())
    }

    fn no(&mut self, at: Time, call: &str, why: &str) -> Option<()> {
        let Call { session, asked, shows, .. } = self.calls.remove(call)?;
        match asked {
            Asked::Put(name) => {
                let put = self.item(&name).put.as_mut()?;
                put.answer = Answer::No;
                let of = put.of.clone().filter(|_| why == "Stale");
                if let (Some(of), Some(session)) = (of, self.sessions.get_mut(&session))
                    && let Some(at) = session.hand.iter().position(|((_, held), _)| *held == of)
                {
                    session.hand.remove(at);
                }
            }
            Asked::Ack(name, ack, result) => {
                self.refuse(&name, ack, why)?;
                if let Some(result) = result {
                    self.item(&result).put.as_mut()?.answer = Answer::No;
                }
            }
            // An error promises nothing.
            Asked::Done(_) => {}
            _ => self.show(at, &session, &shows),
        }
        Some(())
    }

    /// A clean exit settles what no result is demanded of.
    fn exited(&mut self, at: Time, process: &str) {
        let session = self.current.remove(process).and_then(|it| self.sessions.remove(&it));
        for (name, delivery) in session.into_iter().flat_map(|session| session.hand) {
            if !self.is_strict(&name.0) {
                self.settle(&name, delivery, Settled::At(at));
                self.exits.push((name, delivery));
            }
        }
    }
}

impl Rules {
    fn is_strict(&self) -> bool {
        self.results.is_some() && !self.settles_at_once
    }
}

impl Counts {
    /// Adds up what several judges counted.
    pub(crate) fn add(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.in_doubt += other.in_doubt;
        self.delivered += other.delivered;
        self.again += other.again;
        self.results += other.results;
        self.dead += other.dead;
        self.left += other.left;
        self.killed += other.killed;
        self.crashes += other.crashes;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { accepted, in_doubt, delivered, again, results, dead, left, .. } = self;
        write!(
            f,
            "{} server kills, {} client kills: {accepted} puts accepted and {in_doubt} in doubt, \
             {delivered} deliveries ({again} repeated), {results} results, {dead} dead letters, \
             {left} left; none lost, no result twice, order kept",
            self.crashes, self.killed
        )
    }
}
