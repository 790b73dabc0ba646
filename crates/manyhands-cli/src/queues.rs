//! Queues as they are declared: by `--queue NAME,key=value…` and by `[queue.NAME]` in a file of
//! `--config`, with the same keys.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
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

/// Reads the queues that a configuration file declares.
pub(crate) fn read(path: &Path) -> Result<Vec<(String, QueueOptions)>> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the configuration {}", path.display()))?;
    parse_file(&text).with_context(|| format!("in {}", path.display()))
}

fn parse_file(text: &str) -> Result<Vec<(String, QueueOptions)>> {
    let mut queues = Vec::new();
    for (section, value) in text.parse::<toml::Table>()? {
        ensure!(section == "queue", "no section [{section}]; expected [queue.NAME]");
        let toml::Value::Table(declared) = value else {
            bail!("`queue` holds no value of its own; expected sections [queue.NAME]");
        };
        for (name, value) in declared {
            let options = parse_table(&value).with_context(|| format!("[queue.{name}]"))?;
            queues.push((name, options));
        }
    }
    Ok(queues)
}

fn parse_table(value: &toml::Value) -> Result<QueueOptions> {
    let toml::Value::Table(keys) = value else { bail!("expected a section of its own") };
    let mut options = QueueOptions::default();
    for (key, value) in keys {
        let text = match value {
            toml::Value::String(text) => text.clone(),
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Float(number) => number.to_string(),
            toml::Value::Boolean(truth) => truth.to_string(),
            _ => bail!("{key} must be a text, a number or a truth value"),
        };
        options.set(key, &text)?;
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
    fn a_word_and_a_file_declare_the_same() {
        let word = "jobs,results=answers,attempts=3,dead=lost,max_run=1.5,lease=60,backoff=2,\
                    backoff_max=9,expires=8,dedup=7,ordered=true,delivery=cpython";
        let file = "[queue.jobs]\nresults = 'answers'\nattempts = 3\ndead = 'lost'\n\
                    max_run = 1.5\nlease = 60\nbackoff = 2\nbackoff_max = 9\nexpires = 8\n\
                    dedup = 7\nordered = true\ndelivery = 'cpython'\n";
        let declared = parse(word).unwrap();
        assert_eq!(declared.1.results.as_deref(), Some("answers"));
        assert_eq!(
            (declared.1.attempts, declared.1.max_run),
            (3, Some(Duration::from_millis(1500)))
        );
        assert_eq!(parse_file(file).unwrap(), [declared]);
    }

    #[test]
    fn a_wrong_declaration_is_named() {
        let check = |text, expected| {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(expected), "{error}");
        };
        check("", "needs a name");
        check("jobs,order=random", "no order \"random\"; expected fifo, lifo or priority");
        check("jobs,maxsize=-1", "maxsize=\"-1\": invalid digit");
        check("jobs,size=1", "no option \"size\"");
        check("jobs,fast", "no option \"fast\"");
        check("jobs,results=", "results needs the name of a queue");
        check("jobs,max_run=-1", "max_run=\"-1\" seconds");
    }

    #[test]
    fn a_wrong_file_is_named_with_section_and_key() {
        let check = |text, expected| {
            let error = format!("{:#}", parse_file(text).unwrap_err());
            assert!(error.contains(expected), "{error}");
        };
        check("[queue.jobs]\nsize = 1", "[queue.jobs]: no option \"size\" of a queue");
        check("[queue.jobs]\nmaxsize = -1", "[queue.jobs]: maxsize=\"-1\": invalid digit");
        check("[queue.jobs]\ndead = []", "[queue.jobs]: dead must be a text");
        check("[server]\n", "no section [server]");
        check("queue = 1", "expected sections");
        let missing = format!("{:#}", read(Path::new("/nonexistent/queues.toml")).unwrap_err());
        assert!(missing.contains("/nonexistent/queues.toml"), "{missing}");
    }
}
