//! Where the authkey comes from: a file, standard input, or one that is made and kept.
//!
//! Never from the command line or the environment, which other users of the machine can read.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use etcetera::BaseStrategy;
use manyhands::AuthKey;

/// Random bytes in a key that we make; the file has twice as many hexadecimal digits.
const NEW_KEY_LEN: usize = 32;

/// Options that name a key.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct KeyArguments {
    /// File with the authkey: its bytes, without one newline at the end; - is standard input
    /// [default: a key that is made once and kept in the user's configuration directory]
    #[arg(long, value_name = "PATH")]
    pub(crate) authkey_file: Option<PathBuf>,
    /// File with the decimal number of a script whose authkey is an int, such as authkey=510210:
    /// Python makes that many NUL bytes of it, which is easy to guess, so it counts as weak
    #[arg(long, value_name = "PATH", conflicts_with = "authkey_file")]
    pub(crate) authkey_int_file: Option<PathBuf>,
}

/// A key and where it is kept.
pub(crate) struct Key {
    pub(crate) key: AuthKey,
    /// `None` if it came through standard input.
    pub(crate) path: Option<PathBuf>,
    pub(crate) is_new: bool,
    pub(crate) is_int: bool,
}

impl KeyArguments {
    /// Reads the key that the options name; if they name none, the kept one, made now if `may_make`.
    pub(crate) fn read(&self, may_make: bool) -> Result<Key> {
        if let Some(path) = &self.authkey_int_file {
            let key = AuthKey::from_int_file(path)?;
            return Ok(Key { key, path: Some(path.clone()), is_new: false, is_int: true });
        }
        match &self.authkey_file {
            Some(path) if path.as_os_str() == "-" => {
                let key = AuthKey::from_reader(io::stdin().lock(), "standard input")?;
                Ok(Key { key, path: None, is_new: false, is_int: false })
            }
            Some(path) => Self::read_file(path),
            None => Self::read_kept(may_make),
        }
    }

    /// Whether the key comes through standard input.
    pub(crate) fn is_standard_input(&self) -> bool {
        self.authkey_file.as_deref() == Some(Path::new("-"))
    }

    fn read_file(path: &Path) -> Result<Key> {
        let key = AuthKey::from_file(path)?;
        Ok(Key { key, path: Some(path.to_owned()), is_new: false, is_int: false })
    }

    fn read_kept(may_make: bool) -> Result<Key> {
        let path = kept_path()?;
        if may_make && !path.exists() {
            make(&path)
                .with_context(|| format!("cannot keep a new authkey in {}", path.display()))?;
            return Ok(Key { is_new: true, ..Self::read_file(&path)? });
        }
        Self::read_file(&path)
            .context("no authkey: name its file with --authkey-file, or start `manyhands serve`")
    }
}

/// What is odd about the key in a file, so that it may not be the one that was meant.
pub(crate) fn oddity(path: &Path) -> Option<String> {
    let content = std::fs::read(path).ok()?;
    let key = content.strip_suffix(b"\n").unwrap_or(&content);
    match key {
        [.., b'\n'] => Some("ends in a newline, beside the one that is taken off".into()),
        [.., b'\r'] => Some("ends in a carriage return, as Windows ends lines".into()),
        [] => None,
        digits if digits.iter().all(u8::is_ascii_digit) && digits.len() <= 8 => Some(
            "holds a number: for a script whose authkey is an int, name it by --authkey-int-file"
                .into(),
        ),
        _ => None,
    }
}

/// Where the key is kept that is used when no other is named.
pub(crate) fn kept_path() -> Result<PathBuf> {
    let base = etcetera::choose_base_strategy().context("cannot tell your home directory")?;
    Ok(base.config_dir().join("manyhands").join("authkey"))
}

/// A strong key, in hexadecimal digits.
pub(crate) fn random_key() -> io::Result<String> {
    let mut random = [0; NEW_KEY_LEN];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Keeps a new key at `path`. Another process that does the same at this moment wins or loses as a whole.
fn make(path: &Path) -> Result<()> {
    let digits = random_key()?;
    let directory = path.parent().unwrap_or(Path::new(""));
    std::fs::create_dir_all(directory)?;
    let draft = directory.join(format!("authkey.{}", std::process::id()));
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&draft)?;
    writeln!(file, "{digits}")?;
    file.sync_all()?;
    // Unlike a rename, a link does not replace the key of somebody who was faster.
    let linked = std::fs::hard_link(&draft, path);
    std::fs::remove_file(&draft)?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_may_not_be_meant_is_noticed() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("authkey");
        let odd = |content: &str| {
            std::fs::write(&path, content).unwrap();
            oddity(&path).unwrap_or_default()
        };
        assert_eq!([odd("secret"), odd("secret\n"), odd("1234567890123\n")], ["", "", ""]);
        assert!(odd("secret\n\n").contains("newline"));
        assert!(odd("secret\r\n").contains("carriage return"));
        assert!(odd("510210\n").contains("--authkey-int-file"));
    }

    #[test]
    fn a_new_key_is_strong_private_and_made_once() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("authkey");
        make(&path).unwrap();
        let key = KeyArguments::read_file(&path).unwrap().key;
        assert_eq!(key.strength(), 2 * NEW_KEY_LEN);
        let content = std::fs::read(&path).unwrap();
        make(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), content);
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 1, "no drafts are left");
    }
}
