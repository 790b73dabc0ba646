//! The configuration file of `serve`: queues in sections `[queue.NAME]`, with the keys of `--queue`,
//! and in `[server]` what the command line does not say, with the names of its long options.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use clap::ArgAction;
use manyhands_server::QueueOptions;

use crate::queues;

/// What a file says.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Config {
    pub(crate) queues: Vec<(String, QueueOptions)>,
    server: toml::Table,
}

/// Reads a configuration file.
pub(crate) fn read(path: &Path) -> Result<Config> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the configuration {}", path.display()))?;
    parse(&text).with_context(|| format!("in {}", path.display()))
}

fn parse(text: &str) -> Result<Config> {
    let mut config = Config::default();
    for (name, value) in text.parse::<toml::Table>()? {
        match (name.as_str(), value) {
            ("queue", toml::Value::Table(declared)) => {
                for (name, value) in declared {
                    let options = queues::parse_table(&value);
                    let options = options.with_context(|| format!("[queue.{name}]"))?;
                    config.queues.push((name, options));
                }
            }
            ("queue", _) => bail!("`queue` holds no value of its own; expected [queue.NAME]"),
            ("server", toml::Value::Table(options)) => config.server = options,
            ("server", _) => bail!("`server` holds no value of its own; expected [server]"),
            (section, toml::Value::Table(_)) => {
                bail!("no section [{section}]; expected [server] and [queue.NAME]")
            }
            (key, _) => bail!(
                "`{key}` stands outside of any section; options of the server go below [server], \
                 those of a queue below [queue.NAME]"
            ),
        }
    }
    Ok(config)
}

impl Config {
    /// The options of `[server]` as words of the command line `command`, without those that are
    /// `given` there.
    pub(crate) fn arguments(
        &self,
        command: &clap::Command,
        given: impl Fn(&str) -> bool,
    ) -> Result<Vec<OsString>> {
        let mut words = Vec::new();
        for (key, value) in &self.server {
            let long = key.replace('_', "-");
            let known = |argument: &&clap::Arg| argument.get_long() == Some(&long);
            let known = command.get_arguments().find(known).filter(|_| is_for_files(&long));
            let Some(argument) = known else {
                bail!("[server]: no option {key:?}; expected one of {}", names(command));
            };
            if given(argument.get_id().as_str()) {
                continue;
            }
            let is_switch = matches!(argument.get_action(), ArgAction::SetTrue);
            match value {
                toml::Value::Boolean(true) if is_switch => words.push(format!("--{long}").into()),
                toml::Value::Boolean(false) if is_switch => {}
                _ if is_switch => bail!("[server]: {key} must be true or false"),
                toml::Value::Array(values)
                    if matches!(argument.get_action(), ArgAction::Append) =>
                {
                    for value in values {
                        words.push(word(&long, value)?);
                    }
                }
                value => words.push(word(&long, value)?),
            }
        }
        Ok(words)
    }
}

/// What only the command line says: this file, and the queues, which have sections of their own.
fn is_for_files(long: &str) -> bool {
    !matches!(long, "config" | "queue" | "show-worker" | "help")
}

fn names(command: &clap::Command) -> String {
    let longs = command.get_arguments().filter_map(clap::Arg::get_long);
    longs.filter(|long| is_for_files(long)).collect::<Vec<_>>().join(", ")
}

fn word(long: &str, value: &toml::Value) -> Result<OsString> {
    let text = queues::text(value);
    ensure!(text.is_some(), "[server]: {long} must be a text or a number");
    Ok(format!("--{long}={}", text.unwrap_or_default()).into())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_word_and_a_file_declare_the_same() {
        let word = "jobs,results=answers,attempts=3,dead=lost,max_run=1.5,lease=60,backoff=2,\
                    backoff_max=9,expires=8,dedup=7,ordered=true,delivery=cpython";
        let file = "[queue.jobs]\nresults = 'answers'\nattempts = 3\ndead = 'lost'\n\
                    max_run = 1.5\nlease = 60\nbackoff = 2\nbackoff_max = 9\nexpires = 8\n\
                    dedup = 7\nordered = true\ndelivery = 'cpython'\n";
        let declared = queues::parse(word).unwrap();
        assert_eq!(declared.1.results.as_deref(), Some("answers"));
        assert_eq!(
            (declared.1.attempts, declared.1.max_run),
            (3, Some(Duration::from_millis(1500)))
        );
        assert_eq!(parse(file).unwrap().queues, [declared]);
    }

    #[test]
    fn a_wrong_file_is_named_with_section_and_key() {
        let check = |text, expected| {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(expected), "{error}");
        };
        check("[queue.jobs]\nsize = 1", "[queue.jobs]: no option \"size\" of a queue");
        check(
            "[queue.jobs]\nmaxsize = -1",
            "[queue.jobs]: maxsize=\"-1\": expected a whole number",
        );
        check("[queue.jobs]\nattempts = 'four'", "attempts=\"four\": expected a whole number");
        check("[queue.jobs]\ndead = []", "[queue.jobs]: dead must be a text");
        check("[limits]\n", "no section [limits]; expected [server] and [queue.NAME]");
        check(
            "listen = ':5000'",
            "`listen` stands outside of any section; options of the server go",
        );
        check("queue = 1", "expected [queue.NAME]");
        let missing = format!("{:#}", read(Path::new("/nonexistent/queues.toml")).unwrap_err());
        assert!(missing.contains("/nonexistent/queues.toml"), "{missing}");
    }

    #[test]
    fn options_of_the_server_are_words_of_its_command_line() {
        let command = crate::serve::command();
        let text = "[server]\nlisten = ['127.0.0.1:0', ':7']\nno-md5 = true\nlog_json = false\n\
                    frame_timeout = 1.5\nqueues-max = 7\ndata = '/x y'\n";
        let config = parse(text).unwrap();
        let words = config.arguments(&command, |id| id == "queues_max").unwrap();
        let expected = [
            "--data=/x y",
            "--frame-timeout=1.5",
            "--listen=127.0.0.1:0",
            "--listen=:7",
            "--no-md5",
        ];
        let mut words: Vec<_> = words.into_iter().map(|it| it.into_string().unwrap()).collect();
        words.sort_unstable();
        assert_eq!(words, expected);
        let refused = |text: &str| {
            let config = parse(&format!("[server]\n{text}")).unwrap();
            format!("{:#}", config.arguments(&command, |_| false).unwrap_err())
        };
        assert!(refused("port = 5000").contains("no option \"port\"; expected one of listen, "));
        assert!(refused("config = 'a'").contains("no option \"config\""));
        assert!(refused("no-md5 = 1").contains("no-md5 must be true or false"));
        assert!(refused("data = {}").contains("data must be a text or a number"));
    }
}
