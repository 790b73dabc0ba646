//! What a newcomer is told: how a worker and a shell reach the server.

use std::fmt::Write as _;
use std::path::Path;

use manyhands_server::{Address, QueueOptions};

/// The names of the tutorials.
const TASKS: &str = "get_task_queue";
const RESULTS: &str = "get_result_queue";

/// Words that no attribute in a Python program may have for a name.
const PYTHON_KEYWORDS: [&str; 37] = [
    "False", "None", "True", "and", "as", "assert", "async", "await", "break", "class", "continue",
    "def", "del", "elif", "else", "except", "exec", "finally", "for", "from", "global", "if",
    "import", "in", "is", "lambda", "nonlocal", "not", "or", "pass", "print", "raise", "return",
    "try", "while", "with", "yield",
];

/// Where a server listens and its key is, as a worker sees it.
pub(crate) struct Place<'a> {
    pub(crate) address: &'a Address,
    pub(crate) key: &'a Path,
    pub(crate) is_int: bool,
}

impl Place<'_> {
    /// How a Python worker, on this machine or another, and a shell here reach the server.
    pub(crate) fn lines(&self) -> String {
        let mut text = String::new();
        if !self.address.is_local() {
            let (here, key) = (host_name(), self.absolute_key());
            writeln!(
                text,
                "Copy the key to each machine of a worker, into the worker's directory, by"
            )
            .ok();
            writeln!(text, "  scp {here}:{key} authkey").ok();
        }
        writeln!(text, "A Python worker connects with").ok();
        writeln!(text, "  key = {}", self.python_key()).ok();
        writeln!(text, "  BaseManager(address={}, authkey=key)", self.python_address()).ok();
        writeln!(text, "(a whole worker: manyhands serve --show-worker), and a shell looks with")
            .ok();
        writeln!(text, "  manyhands ls{}", self.options()).ok();
        text
    }

    /// A whole worker for the first of these queues that says where its results go.
    pub(crate) fn worker(&self, queues: &[(String, QueueOptions)]) -> String {
        let declared = queues.iter().find(|(_, options)| options.results.is_some());
        let declared = declared.or(queues.first());
        let (tasks, results) = match declared {
            Some((tasks, options)) => (tasks.as_str(), options.results.as_deref()),
            None => (TASKS, Some(RESULTS)),
        };
        let mut text = String::from("from multiprocessing.managers import BaseManager\n");
        for name in [Some(tasks), results].into_iter().flatten() {
            writeln!(text, "BaseManager.register({})", python(name)).ok();
        }
        writeln!(text, "key = {}", self.python_key()).ok();
        writeln!(text, "manager = BaseManager({}, key)", self.python_address()).ok();
        text.push_str("manager.connect()\n");
        match results {
            Some(results) => {
                writeln!(text, "tasks, results = {}, {}", python_call(tasks), python_call(results))
            }
            None => writeln!(text, "tasks = {}", python_call(tasks)),
        }
        .ok();
        text.push_str("while True:\n");
        text.push_str(match results {
            Some(_) => "    results.put(('done', tasks.get()))  # the work goes here\n",
            None => "    print('done', tasks.get())  # the work goes here\n",
        });
        text
    }

    /// It means every address of this machine where it is no address that a worker could use.
    fn is_everywhere(&self) -> bool {
        matches!(self.address, Address::Tcp { host, .. } if host == "0.0.0.0" || host == "::")
    }

    fn python_address(&self) -> String {
        match self.address {
            Address::Tcp { port, .. } if self.is_everywhere() => {
                format!("({}, {port})", python(&host_name()))
            }
            Address::Tcp { host, port } => format!("({}, {port})", python(host)),
            Address::Unix(socket) => python(&socket.display().to_string()),
        }
    }

    fn python_key(&self) -> String {
        let path = if self.address.is_local() { self.absolute_key() } else { "authkey".into() };
        let path = python(&path);
        match self.is_int {
            true => format!("b'\\0' * int(open({path}).read())"),
            false => format!("open({path}, 'rb').read().rstrip(b'\\n')"),
        }
    }

    fn absolute_key(&self) -> String {
        std::path::absolute(self.key).unwrap_or_else(|_| self.key.to_owned()).display().to_string()
    }

    /// What a command of this machine needs to be told.
    fn options(&self) -> String {
        let mut text = String::new();
        let address = match self.address {
            Address::Tcp { port, .. } if self.is_everywhere() => format!("127.0.0.1:{port}"),
            address => address.to_string(),
        };
        if address != "127.0.0.1:5000" {
            write!(text, " --connect {}", shell(&address)).ok();
        }
        let kept = crate::key::kept_path().ok();
        if self.is_int || kept.as_deref() != Some(self.key) {
            let option = if self.is_int { "--authkey-int-file" } else { "--authkey-file" };
            write!(text, " {option} {}", shell(&self.absolute_key())).ok();
        }
        text
    }
}

/// A text in Python, in single quotes.
fn python(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// The call that asks a manager for a queue, in Python.
fn python_call(name: &str) -> String {
    let is_word = |char: char| char.is_ascii_alphanumeric() || char == '_';
    let is_plain = name.chars().all(is_word) && !name.starts_with(|char: char| char.is_numeric());
    match is_plain && !PYTHON_KEYWORDS.contains(&name) {
        true => format!("manager.{name}()"),
        false => format!("getattr(manager, {})()", python(name)),
    }
}

/// A word of a shell.
fn shell(word: &str) -> String {
    let is_plain = |char: char| char.is_ascii_alphanumeric() || "/._-:@%+=[]".contains(char);
    if word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// What other machines may call this one.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "NAME-OF-THIS-MACHINE".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place<'a>(address: &'a Address, key: &'a str, is_int: bool) -> Place<'a> {
        Place { address, key: Path::new(key), is_int }
    }

    fn tcp(host: &str) -> Address {
        Address::Tcp { host: host.into(), port: 5001 }
    }

    #[test]
    fn a_worker_here_reads_the_key_where_it_is() {
        let lines = place(&tcp("127.0.0.1"), "/keys/it's", false).lines();
        assert!(
            lines.contains("key = open('/keys/it\\'s', 'rb').read().rstrip(b'\\n')\n"),
            "{lines}"
        );
        assert!(
            lines.contains("BaseManager(address=('127.0.0.1', 5001), authkey=key)\n"),
            "{lines}"
        );
        let shell = "manyhands ls --connect 127.0.0.1:5001 --authkey-file '/keys/it'\\''s'\n";
        assert!(lines.ends_with(shell) && !lines.contains("scp"), "{lines}");
    }

    #[test]
    fn a_worker_elsewhere_is_told_to_copy_the_key() {
        let lines = place(&tcp("10.0.0.7"), "/keys/key", false).lines();
        assert!(lines.contains(":/keys/key authkey\n"), "{lines}");
        assert!(lines.contains("key = open('authkey', 'rb')"), "{lines}");
        assert!(lines.contains("BaseManager(address=('10.0.0.7', 5001), authkey=key)"), "{lines}");
        for everywhere in ["0.0.0.0", "::"] {
            let lines = place(&tcp(everywhere), "/keys/key", true).lines();
            assert!(!lines.contains(everywhere), "{lines}");
            assert!(lines.contains("key = b'\\0' * int(open('authkey').read())\n"), "{lines}");
            let shell = "ls --connect 127.0.0.1:5001 --authkey-int-file /keys/key\n";
            assert!(lines.ends_with(shell), "{lines}");
        }
    }

    #[test]
    fn no_line_is_broken_at_a_hundred_columns() {
        let key = "/home/somebody/.config/manyhands/authkey";
        for host in ["127.0.0.1", "192.168.100.100", "0.0.0.0"] {
            let lines = place(&tcp(host), key, false).lines();
            // A shell takes a longer word of a path as it comes.
            let mut others = lines.lines().filter(|line| !line.contains("--authkey-file"));
            assert!(others.all(|line| line.len() <= 100) && !lines.contains('"'), "{lines}");
        }
    }

    #[test]
    fn a_worker_is_for_the_queues_that_were_declared() {
        let address = tcp("127.0.0.1");
        let place = place(&address, "/keys/key", false);
        let worker = place.worker(&[
            ("plain".into(), QueueOptions::default()),
            ("odd'name".into(), QueueOptions::default().results("answers")),
        ]);
        assert!(worker.contains("BaseManager.register('odd\\'name')\n"), "{worker}");
        let call = "tasks, results = getattr(manager, 'odd\\'name')(), manager.answers()\n";
        assert!(worker.contains(call), "{worker}");
        let worker = place.worker(&[("plain".into(), QueueOptions::default())]);
        assert!(worker.contains("tasks = manager.plain()\n") && !worker.contains("results"));
        assert_eq!(worker.lines().count(), 8, "{worker}");
        for odd in ["1st", "in", "a.dead", "ä"] {
            let worker = place.worker(&[(odd.into(), QueueOptions::default())]);
            assert!(worker.contains(&format!("tasks = getattr(manager, '{odd}')()\n")), "{worker}");
        }
        let worker = place.worker(&[]);
        let call = "tasks, results = manager.get_task_queue(), manager.get_result_queue()\n";
        assert!(worker.contains(call), "{worker}");
        assert_eq!(worker.lines().count(), 9, "{worker}");
    }
}
