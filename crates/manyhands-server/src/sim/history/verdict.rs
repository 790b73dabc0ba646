//! The verdict on a history: what became of each item, and whether each queue kept its order.

use std::collections::{BTreeMap, BTreeSet};

use super::{Answer, Asked, Call, Item, Judge, Name, Rules, Settled, Time};

impl Judge {
    pub(super) fn close(&mut self) {
        let items = std::mem::take(&mut self.items);
        let mut of: BTreeMap<&str, Vec<(&Name, &Item)>> = BTreeMap::new();
        for (name, item) in &items {
            if let Some(of_task) = item.put.as_ref().and_then(|put| put.of.as_deref()) {
                of.entry(of_task).or_default().push((name, item));
            }
        }
        let mut wrong = vec![];
        for (name, item) in &items {
            let results = of.get(name.1.as_str()).map_or(&[][..], Vec::as_slice);
            if let Err(why) = self.account(name, item, results, &items) {
                wrong.push(format!("{} of {}: {why}", name.1, name.0));
            }
        }
        for queue in self.queues.keys().cloned().collect::<Vec<_>>() {
            wrong.extend(self.order(&queue, &items));
        }
        self.wrong.extend(wrong);
    }

    /// An item is in one place at the end, or was used up once.
    fn account(
        &mut self,
        name: &Name,
        item: &Item,
        results: &[(&Name, &Item)],
        items: &BTreeMap<Name, Item>,
    ) -> Result<(), String> {
        let (queue, number) = name;
        let rules = self.queues.get(queue).cloned().unwrap_or_default();
        let appears = item.left > 0 || !item.deliveries.is_empty();
        let buried = self.queues.values().any(|rules| rules.dead.as_ref() == Some(queue));
        self.counts.left += item.left;
        self.counts.dead += usize::from(buried && appears && item.put.is_none());
        match &item.put {
            None if !buried => return Err("nobody has put it".into()),
            None => {}
            Some(put) if put.answer == Answer::No && appears => return Err("it was refused".into()),
            Some(put) if put.answer == Answer::No => return Ok(()),
            Some(put) if put.answer == Answer::Doubt && !appears => {
                self.counts.in_doubt += 1;
                return Ok(());
            }
            Some(_) => {}
        }
        if item.left > 1 {
            return Err(format!("it is there {} times", item.left));
        }
        let was_purged = self.was_purged(&rules, queue, item)
            || buried && item.put.is_none() && self.redriven.contains(queue);
        let is_special = item.put.as_ref().is_some_and(|put| put.is_special);
        let may_be_gone = was_purged || rules.expires || is_special;
        let grave = rules.dead.as_ref().and_then(|dead| items.get(&(dead.clone(), number.clone())));
        let is_back = rules.dead.as_ref().is_some_and(|dead| self.redriven.contains(dead));
        if grave.is_some_and(|grave| grave.left > 0 && item.left > 0) {
            return Err("it is there, and among dead letters too".into());
        }
        let kept = results.iter().filter(|(_, result)| result.is_kept()).count();
        // It may have been a dead letter for a while.
        let is_dead = grave.is_some_and(|grave| grave.left > 0 || !is_back);
        item.check_acks(is_dead, kept)?;
        if rules.is_strict() {
            let may_be_gone = may_be_gone || item.is_acked_alone() || is_back && grave.is_some();
            return self.account_strictly(item, results, is_dead, may_be_gone);
        }
        let may_be_gone = may_be_gone || item.is_acked() || is_back && grave.is_some();
        let settled = item.deliveries.iter().filter_map(|delivery| match delivery.settled {
            Settled::At(at) => Some(at),
            _ => None,
        });
        let Some(settled) = settled.min() else {
            return item.check_presence(is_dead || may_be_gone);
        };
        if item.left > 0 || is_dead {
            return Err("it was done and is there again".into());
        }
        if item.deliveries.iter().any(|delivery| delivery.asked > settled) {
            return Err("it was given to somebody after it was done".into());
        }
        Ok(())
    }

    /// Whether a purge may have taken it, its letter or its result.
    fn was_purged(&self, rules: &Rules, queue: &str, item: &Item) -> bool {
        let asked = item.put.as_ref().map_or(0, |put| put.asked);
        let queues = [Some(queue), rules.dead.as_deref(), rules.results.as_deref()];
        let purged = queues.into_iter().flatten().filter_map(|queue| self.purged.get(queue));
        purged.max().is_some_and(|until| asked < *until)
    }

    fn account_strictly(
        &mut self,
        item: &Item,
        results: &[(&Name, &Item)],
        is_dead: bool,
        may_be_gone: bool,
    ) -> Result<(), String> {
        let kept: Vec<_> = results.iter().filter(|(_, result)| result.is_kept()).collect();
        self.counts.results += kept.len();
        match kept.as_slice() {
            [] if item.left > 0 || is_dead || may_be_gone || item.perhaps_done => Ok(()),
            [] => Err("lost: it has no result, and is not there".into()),
            [(_, result)] => {
                if item.left > 0 || is_dead {
                    return Err("it has a result and is there again".into());
                }
                let Some(Answer::Yes(at)) = result.put.as_ref().map(|put| put.answer) else {
                    return Ok(());
                };
                if item.deliveries.iter().any(|delivery| delivery.asked > at) {
                    return Err("it was given to somebody after its result was kept".into());
                }
                Ok(())
            }
            [..] => {
                let names: BTreeSet<_> = kept.iter().map(|((_, name), _)| name).collect();
                Err(format!("it has {} results: {names:?}", kept.len()))
            }
        }
    }

    /// Of two items put one after the other, the second is not handed out while the first is there
    /// and has never been. One that a client may have taken to its grave is excused.
    fn order(&self, queue: &str, items: &BTreeMap<Name, Item>) -> Vec<String> {
        if self.queues.get(queue).is_some_and(|rules| rules.is_sorted) {
            return vec![];
        }
        let mut puts: Vec<_> = items
            .iter()
            .filter(|((of, _), _)| of == queue)
            .filter(|(_, item)| !self.was_purged(&Rules::default(), queue, item))
            .filter_map(|((_, name), item)| {
                let put = item.put.as_ref().filter(|put| !put.is_special)?;
                let Answer::Yes(accepted) = put.answer else { return None };
                Some((put.asked, accepted, name, item))
            })
            .collect();
        puts.sort_by_key(|(asked, ..)| *asked);
        // The first delivery among the items from each position on.
        let mut first_of_rest = vec![(Time::MAX, ""); puts.len() + 1];
        for (at, (_, _, name, item)) in puts.iter().enumerate().rev() {
            let first = item.deliveries.iter().map(|delivery| (delivery.at, name.as_str())).min();
            first_of_rest[at] =
                first.map_or(first_of_rest[at + 1], |it| it.min(first_of_rest[at + 1]));
        }
        let mut overtaken = vec![];
        for (_, accepted, name, item) in &puts {
            let later = puts.partition_point(|(asked, ..)| asked <= accepted);
            let (by, whom) = first_of_rest[later];
            let asked = item.deliveries.iter().map(|delivery| delivery.asked).min();
            if asked.unwrap_or(Time::MAX) > by {
                overtaken.push((by, format!("{name} of {queue}: {whom}, put later, went before")));
            }
        }
        overtaken.sort();
        let is_get =
            |call: &&Call| matches!(&call.asked, Asked::Get(of) | Asked::Lease(of) if of == queue);
        let gets = self.calls.values().filter(is_get);
        let mut excuses: Vec<_> =
            gets.flat_map(|call| std::iter::repeat_n(call.at, call.max)).collect();
        excuses.sort_unstable();
        let mut excuses = excuses.into_iter().peekable();
        overtaken.retain(|(by, _)| excuses.next_if(|asked| asked < by).is_none());
        overtaken.into_iter().map(|(_, text)| text).collect()
    }
}

impl Item {
    /// Whether an ack without a result may have settled it.
    fn is_acked_alone(&self) -> bool {
        self.acks.iter().any(|ack| ack.answer != Answer::No && !ack.has_result)
    }

    fn is_acked(&self) -> bool {
        self.acks.iter().any(|ack| ack.answer != Answer::No)
    }

    /// An ack that was kept ends it, with the one result that it brought or without any.
    fn check_acks(&self, is_dead: bool, results: usize) -> Result<(), String> {
        let kept = self.acks.iter().filter_map(|ack| match ack.answer {
            Answer::Yes(at) => Some((at, ack)),
            _ => None,
        });
        let kept: Vec<_> = kept.collect();
        let [(at, ack)] = kept.as_slice() else {
            return if kept.is_empty() { Ok(()) } else { Err("two acks were kept".into()) };
        };
        if self.left > 0 || is_dead {
            return Err("an ack was kept and it is there again".into());
        }
        if self.deliveries.iter().any(|delivery| delivery.asked > *at) {
            return Err("it was given to somebody after an ack was kept".into());
        }
        if results != usize::from(ack.has_result) {
            return Err(format!("an ack was kept and it has {results} results"));
        }
        Ok(())
    }

    /// Whether the last one whom it was given to may have settled it. One who asked before another
    /// was told may have been given it before, however late the reply came.
    fn is_perhaps_settled(&self) -> bool {
        let mut told = self.deliveries.iter();
        std::iter::from_fn(|| Some((told.next()?, told.as_slice()))).any(|(delivery, later)| {
            delivery.settled == Settled::Perhaps
                && later.iter().all(|later| later.asked <= delivery.at)
        })
    }

    /// Nobody has certainly done it; so it has to be somewhere.
    fn check_presence(&self, elsewhere: bool) -> Result<(), String> {
        if self.left > 0 || elsewhere || self.is_perhaps_settled() {
            return Ok(());
        }
        Err(format!("lost: taken {} times, never done, and not there", self.deliveries.len()))
    }

    /// Whether it was accepted, or is seen to have been.
    fn is_kept(&self) -> bool {
        let appears = self.left > 0 || !self.deliveries.is_empty();
        self.put.as_ref().is_some_and(|put| match put.answer {
            Answer::Yes(_) => true,
            Answer::Doubt => appears,
            Answer::No => false,
        })
    }
}
