//! Queues as they are declared: by `--queue NAME,key=value…` and by `[queue.NAME]` in the
//! [configuration](crate::config), with the same keys.

use anyhow::{Result, bail, ensure};
use manyhands_server::QueueOptions;

/// What `--help` shows.
pub(crate) const SYNTAX: &str = "NAME[,order=fifo|lifo|priority][,maxsize=N][,results=QUEUE][,…]";

/// Reads a queue's declaration in one word.
pub(crate) fn parse(text: &str) -> Result<(String, QueueOptions)> {
    let mut parts = text.split(',');
    let name = parts.next().unwrap_or_default();
    ensure!(!name.is_empty(), "a queue needs a name");
    let mut options = QueueOptions::default();
    for part in parts {
        let Some((key, value)) = part.split_once('=') else {
            return Err(QueueOptions::no_option(part).into());
        };
        options.set(key, value)?;
    }
    Ok((name.to_owned(), options))
}

/// Reads a queue's section of a configuration file.
pub(crate) fn parse_table(value: &toml::Value) -> Result<QueueOptions> {
    let toml::Value::Table(keys) = value else { bail!("expected a section of its own") };
    let mut options = QueueOptions::default();
    for (key, value) in keys {
        let Some(text) = text(value) else {
            bail!("{key} must be a text, a number or a truth value");
        };
        options.set(key, &text)?;
    }
    Ok(options)
}

/// A plain value of a configuration file as it is typed on the command line.
pub(crate) fn text(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(truth) => Some(truth.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use manyhands_server::Order;

    use super::*;

    #[test]
    fn a_queue_is_declared_in_one_word() {
        let check = |text, order, maxsize| {
            let (name, options) = parse(text).unwrap();
            assert_eq!((name.as_str(), options.order, options.maxsize), ("jobs", order, maxsize));
        };
        check("jobs", Order::Fifo, 0);
        check("jobs,maxsize=10", Order::Fifo, 10);
        check("jobs,order=priority,maxsize=3", Order::Priority, 3);
        check("jobs,order=lifo", Order::Lifo, 0);
    }

    #[test]
    fn a_wrong_declaration_is_named() {
        let check = |text, expected| {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(expected), "{error}");
        };
        check("", "needs a name");
        check("jobs,order=random", "no order \"random\"; expected fifo, lifo or priority");
        check("jobs,maxsize=-1", "maxsize=\"-1\": expected a whole number, such as 100");
        check("jobs,maxsize=ten", "maxsize=\"ten\": expected a whole number, such as 100; 0 is no");
        check("jobs,lease=10m", "lease=\"10m\": expected a number of seconds, such as 600");
        check("jobs,attempts=four", "attempts=\"four\": expected a whole number, such as 100");
        check("jobs,ordered=1", "ordered=\"1\": expected true or false");
        check("jobs,size=1", "no option \"size\"");
        check("jobs,fast", "no option \"fast\"");
        check("jobs,results=", "results needs the name of a queue");
        check("jobs,max_run=-1", "max_run=\"-1\": expected a number of seconds, such as 600");
    }
}
