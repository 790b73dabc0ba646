//! The options of a queue as text: `key=value,…`, as they are typed and as a journal keeps them.

use std::fmt::Write as _;
use std::str::FromStr;
use std::time::Duration;

use super::{Delivery, Durability, Order, QueueOptions, Unasked};

const KEYS: &str = "order, maxsize, delivery, results, attempts, dead, failures, max_run, \
                    lease, backoff, backoff_max, expires, dedup, ordered, unasked or durability";

const NUMBER: &str = "a whole number, such as 100; 0 is no bound";
const SECONDS: &str = "a number of seconds, such as 600";

/// Why a text is no option of a queue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SettingError(String);

impl QueueOptions {
    /// Sets one option by its name. Times are in seconds.
    ///
    /// # Errors
    ///
    /// Names the option, or what is wrong with the value.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), SettingError> {
        match key {
            "order" => self.order = word(key, value, &Order::WORDS)?,
            "delivery" => self.delivery = word(key, value, &Delivery::WORDS)?,
            "durability" => self.durability = Some(word(key, value, &Durability::WORDS)?),
            "maxsize" => self.maxsize = parsed(key, value, NUMBER)?,
            "attempts" => self.attempts = parsed(key, value, NUMBER)?,
            "ordered" => self.ordered = parsed(key, value, "true or false")?,
            "unasked" => self.unasked = word(key, value, &Unasked::WORDS)?,
            "results" => self.results = Some(name(key, value)?),
            "dead" => self.dead = Some(name(key, value)?),
            "failures" => self.failures = Some(name(key, value)?),
            "max_run" => self.max_run = Some(seconds(key, value)?),
            "lease" => self.lease = Some(seconds(key, value)?),
            "expires" => self.expires = Some(seconds(key, value)?),
            "backoff" => self.backoff = seconds(key, value)?,
            "backoff_max" => self.backoff_max = seconds(key, value)?,
            "dedup" => self.dedup = seconds(key, value)?,
            _ => return Err(Self::no_option(key)),
        }
        Ok(())
    }

    /// What to say of a word that is no option.
    #[must_use]
    pub fn no_option(word: &str) -> SettingError {
        SettingError(format!("no option {word:?} of a queue; expected {KEYS}, each with =…"))
    }

    /// All that is not as it is by default, as `key=value,…`.
    #[must_use]
    pub fn settings(&self) -> String {
        let plain = Self::default();
        let mut text = String::new();
        let mut say = |key: &str, value: Option<String>| {
            if let Some(value) = value {
                let value = value.replace('%', "%25").replace(',', "%2c");
                write!(text, "{}{key}={value}", if text.is_empty() { "" } else { "," }).ok();
            }
        };
        let changed = |is: bool, value: String| is.then_some(value);
        let time = |time: Duration| time.as_secs_f64().to_string();
        say("order", changed(self.order != plain.order, self.order.to_string()));
        let delivery = Delivery::WORDS.iter().find(|(_, it)| *it == self.delivery);
        let delivery = delivery.map_or("", |(word, _)| word);
        say("delivery", changed(self.delivery != plain.delivery, delivery.into()));
        say("durability", self.durability.map(|it| it.to_string()));
        say("maxsize", changed(self.maxsize != plain.maxsize, self.maxsize.to_string()));
        say("attempts", changed(self.attempts != plain.attempts, self.attempts.to_string()));
        say("ordered", changed(self.ordered != plain.ordered, self.ordered.to_string()));
        let unasked = Unasked::WORDS.iter().find(|(_, it)| *it == self.unasked);
        let unasked = unasked.map_or("", |(word, _)| word);
        say("unasked", changed(self.unasked != plain.unasked, unasked.into()));
        say("results", self.results.clone());
        say("dead", self.dead.clone());
        say("failures", self.failures.clone());
        say("max_run", self.max_run.map(time));
        say("lease", self.lease.map(time));
        say("expires", self.expires.map(time));
        say("backoff", changed(self.backoff != plain.backoff, time(self.backoff)));
        say("backoff_max", changed(self.backoff_max != plain.backoff_max, time(self.backoff_max)));
        say("dedup", changed(self.dedup != plain.dedup, time(self.dedup)));
        text
    }

    /// Reads what [`settings`](Self::settings) wrote.
    ///
    /// # Errors
    ///
    /// As [`set`](Self::set).
    pub fn from_settings(text: &str) -> Result<Self, SettingError> {
        let mut options = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').ok_or_else(|| Self::no_option(part))?;
            options.set(key, &value.replace("%2c", ",").replace("%25", "%"))?;
        }
        Ok(options)
    }
}

fn word<T: Copy>(key: &str, value: &str, words: &[(&str, T)]) -> Result<T, SettingError> {
    let found = words.iter().find(|(word, _)| *word == value);
    found.map(|(_, meaning)| *meaning).ok_or_else(|| {
        let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        let (last, others) = words.split_last().unwrap_or((&"nothing", &[]));
        SettingError(format!("no {key} {value:?}; expected {} or {last}", others.join(", ")))
    })
}

fn parsed<T: FromStr>(key: &str, value: &str, expected: &str) -> Result<T, SettingError> {
    let wrong = |_| SettingError(format!("{key}={value:?}: expected {expected}"));
    value.parse().map_err(wrong)
}

fn name(key: &str, value: &str) -> Result<String, SettingError> {
    if value.is_empty() {
        return Err(SettingError(format!("{key} needs the name of a queue")));
    }
    Ok(value.to_owned())
}

fn seconds(key: &str, value: &str) -> Result<Duration, SettingError> {
    let seconds = parsed(key, value, SECONDS)?;
    let wrong = |_| SettingError(format!("{key}={value:?}: expected {SECONDS}"));
    Duration::try_from_secs_f64(seconds).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_they_were_written() {
        let check = |options: &QueueOptions, text: &str| {
            assert_eq!(options.settings(), text);
            assert_eq!(QueueOptions::from_settings(text).as_ref(), Ok(options));
        };
        check(&QueueOptions::default(), "");
        check(&QueueOptions::lifo().maxsize(3), "order=lifo,maxsize=3");
        check(&QueueOptions::default().results("a,b=100%"), "results=a%2cb=100%25");
        let all = QueueOptions {
            order: Order::Priority,
            delivery: Delivery::Cpython,
            durability: Some(Durability::Os),
            maxsize: 7,
            attempts: 0,
            ordered: true,
            unasked: Unasked::Refuse,
            results: Some("r".into()),
            dead: Some("d".into()),
            failures: Some("f".into()),
            max_run: Some(Duration::from_millis(1500)),
            lease: Some(Duration::from_secs(1)),
            expires: Some(Duration::from_secs(2)),
            backoff: Duration::from_secs(3),
            backoff_max: Duration::from_secs(4),
            dedup: Duration::from_secs(5),
        };
        let text = "order=priority,delivery=cpython,durability=os,maxsize=7,attempts=0,\
                    ordered=true,unasked=refuse,results=r,dead=d,failures=f,max_run=1.5,lease=1,\
                    expires=2,backoff=3,\
                    backoff_max=4,dedup=5";
        check(&all, text);
    }

    #[test]
    fn an_option_that_is_none_is_named() {
        let error = QueueOptions::from_settings("size=3").unwrap_err().to_string();
        assert!(error.contains("no option \"size\""), "{error}");
        let error = QueueOptions::from_settings("durability=tape").unwrap_err().to_string();
        assert_eq!(error, "no durability \"tape\"; expected disk, os or memory");
    }
}
