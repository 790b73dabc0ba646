//! How a command line becomes a process: by itself, or by a shell.
//!
//! A shell is not needed where a line is a program and its words: starting it takes twice as long. So
//! a line runs by itself if all its literal parts are letters, digits and `_.+/-,:@%=`, and its first
//! word is a program that is found now and no word that a shell knows itself. Everything else goes to
//! `sh -c`, and so does what the system cannot start.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::template::{Input, Template};

const SHELL: &str = "/bin/sh";

/// What shells do themselves, or read as the beginning of something else. `true` and `false` do the
/// same as programs.
const OF_SHELLS: &str = "! . : [ [[ alias bg bind break builtin caller case cd chdir command compgen \
complete compopt continue coproc declare dirs disown do done echo elif else enable esac eval exec exit \
export fc fg fi for function getopts hash help history if in jobs kill let local logout mapfile popd \
printf pushd pwd read readarray readonly return select set shift shopt source suspend test then time \
times trap type typeset ulimit umask unalias unset until wait while";

/// What makes command lines, and how they are started.
#[derive(Debug, Clone)]
pub(super) enum Launch {
    /// Arguments are command lines themselves.
    Lines,
    /// A template, and its program where no shell is needed.
    Template(Template, Option<PathBuf>),
}

/// A command line of one job.
#[derive(Debug)]
pub(super) struct Invocation {
    /// As a shell reads it.
    pub(super) line: Vec<u8>,
    /// The program and all words, where no shell is needed.
    words: Option<(PathBuf, Vec<OsString>)>,
}

impl Launch {
    pub(super) fn new(template: Template) -> Self {
        let program = template.program().and_then(found);
        Self::Template(template, program)
    }

    /// Whether the argument is part of the line.
    pub(super) fn needs_argument(&self) -> bool {
        match self {
            Self::Lines => true,
            Self::Template(template, _) => template.has_placeholder(),
        }
    }

    pub(super) fn invocation(&self, input: &Input, slot: usize) -> Invocation {
        let Self::Template(template, program) = self else {
            return Invocation { line: input.argument.clone(), words: None };
        };
        let words = program.as_ref().and_then(|program| {
            let words = template.words(input, slot)?;
            Some((program.clone(), words.into_iter().map(OsString::from_vec).collect()))
        });
        Invocation { line: template.line(input, slot), words }
    }
}

impl Invocation {
    /// The process that it is, without a shell where none is needed.
    pub(super) fn command(&self) -> Command {
        let Some((program, words)) = &self.words else { return self.shell_command() };
        let mut command = Command::new(program);
        if let Some((name, words)) = words.split_first() {
            std::os::unix::process::CommandExt::arg0(&mut command, name);
            command.args(words);
        }
        command
    }

    /// The process that has a shell read it.
    pub(super) fn shell_command(&self) -> Command {
        let mut command = Command::new(SHELL);
        command.arg("-c").arg(OsStr::from_bytes(&self.line));
        command
    }
}

/// The program that a shell would start for this word.
fn found(word: &[u8]) -> Option<PathBuf> {
    if word.contains(&b'=') || OF_SHELLS.split(' ').any(|it| it.as_bytes() == word) {
        return None;
    }
    let word = Path::new(OsStr::from_bytes(word));
    if word.as_os_str().as_bytes().contains(&b'/') {
        return is_program(word).then(|| word.to_owned());
    }
    let directories = env::var_os("PATH")?;
    env::split_paths(&directories).map(|it| it.join(word)).find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has_shell(text: &str) -> bool {
        let launch = Launch::new(Template::new(text.as_bytes()).with_argument());
        let input = Input { number: 1, argument: b"$(a b)".to_vec() };
        launch.invocation(&input, 1).words.is_none()
    }

    #[test]
    fn a_shell_is_started_where_one_is_needed() {
        for text in ["ls -l {}", "/bin/ls {.}", "true", "cp {} out/{/}"] {
            assert!(!has_shell(text), "{text}");
        }
        let shells = ["echo {}", "A=1 ls", "ls {} >x", "no-such-program", "{} a", "exit", "ls{}"];
        for text in shells {
            assert!(has_shell(text), "{text}");
        }
    }
}
