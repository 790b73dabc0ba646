//! Where the authkey comes from: a file, standard input, or one that is made and kept.
//!
//! Never from the command line or the environment, which other users of the machine can read.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use etcetera::BaseStrategy;

/// Largest key file, in bytes. The key of a script may be a number of NUL bytes, so this is ample.
const KEY_BYTES_MAX: u64 = 16 << 20;
/// Random bytes in a key that we make; the file has twice as many hexadecimal digits.
const NEW_KEY_LEN: usize = 32;

/// Options that name a key.
#[derive(Debug, clap::Args)]
pub(crate) struct KeyArguments {
    /// File with the authkey: its bytes, without one newline at the end; - is standard input
    /// [default: a key that is made once and kept in the user's configuration directory]
    #[arg(long, value_name = "PATH")]
    pub(crate) authkey_file: Option<PathBuf>,
    /// File with the decimal number of a script that has an int authkey, which means that many NUL
    /// bytes; always counts as weak
    #[arg(long, value_name = "PATH", conflicts_with = "authkey_file")]
    pub(crate) authkey_int_file: Option<PathBuf>,
}

/// A key and where it is kept.
pub(crate) struct Key {
    pub(crate) bytes: Vec<u8>,
    /// `None` if it came through standard input.
    pub(crate) path: Option<PathBuf>,
    pub(crate) is_new: bool,
    pub(crate) is_int: bool,
}

impl KeyArguments {
    /// Reads the key that the options name; if they name none, the kept one, made now if `may_make`.
    pub(crate) fn read(&self, may_make: bool) -> Result<Key> {
        if let Some(path) = &self.authkey_int_file {
            let bytes = read_int(path)?;
            return Ok(Key { bytes, path: Some(path.clone()), is_new: false, is_int: true });
        }
        match &self.authkey_file {
            Some(path) if path.as_os_str() == "-" => {
                let mut bytes = Vec::new();
                let read = io::stdin().lock().take(KEY_BYTES_MAX + 1).read_to_end(&mut bytes);
                read.context("cannot read the authkey from standard input")?;
                let bytes = key_in(bytes, Path::new("standard input"))?;
                Ok(Key { bytes, path: None, is_new: false, is_int: false })
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
        let bytes = key_in(read_private(path)?, path)?;
        Ok(Key { bytes, path: Some(path.to_owned()), is_new: false, is_int: false })
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

/// Where the key is kept that is used when no other is named.
pub(crate) fn kept_path() -> Result<PathBuf> {
    let base = etcetera::choose_base_strategy().context("cannot tell your home directory")?;
    Ok(base.config_dir().join("manyhands").join("authkey"))
}

fn key_in(mut bytes: Vec<u8>, path: &Path) -> Result<Vec<u8>> {
    ensure!(
        bytes.len() as u64 <= KEY_BYTES_MAX,
        "the authkey in {} is over {KEY_BYTES_MAX} bytes",
        path.display()
    );
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    ensure!(!bytes.is_empty(), "the authkey in {} is empty", path.display());
    Ok(bytes)
}

fn read_int(path: &Path) -> Result<Vec<u8>> {
    let text = read_private(path)?;
    let number = std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let Some(number) = number.filter(|number| (1..=KEY_BYTES_MAX).contains(number)) else {
        bail!(
            "{} does not hold an int authkey; expected a decimal number from 1 to {KEY_BYTES_MAX}",
            path.display()
        );
    };
    Ok(vec![0; usize::try_from(number)?])
}

/// Reads a file that nobody else may read.
fn read_private(path: &Path) -> Result<Vec<u8>> {
    let context = || format!("cannot read the authkey file {}", path.display());
    let file = File::open(path).with_context(context)?;
    refuse_shared(&file, path)?;
    let mut bytes = Vec::new();
    file.take(KEY_BYTES_MAX + 1).read_to_end(&mut bytes).with_context(context)?;
    Ok(bytes)
}

#[cfg(unix)]
fn refuse_shared(file: &File, path: &Path) -> Result<()> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let meta = file.metadata()?;
    // A pipe has no readers but the one that it was made for.
    ensure!(
        meta.file_type().is_fifo() || meta.mode() & 0o077 == 0,
        "other users can read the authkey file {path} (mode {mode:o}); run: chmod 600 {path}",
        path = path.display(),
        mode = meta.mode() & 0o777
    );
    Ok(())
}

#[cfg(not(unix))]
fn refuse_shared(_: &File, _: &Path) -> Result<()> {
    Ok(())
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

    fn file(text: &[u8], mode: u32) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text).unwrap();
        #[cfg(unix)]
        std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(mode))
            .unwrap();
        file
    }

    fn read(text: &[u8]) -> Result<Vec<u8>> {
        KeyArguments::read_file(file(text, 0o600).path()).map(|key| key.bytes)
    }

    #[test]
    fn one_newline_at_the_end_is_not_part_of_a_key() {
        assert_eq!(read(b"abc").unwrap(), b"abc");
        assert_eq!(read(b"abc\n").unwrap(), b"abc");
        assert_eq!(read(b" a\0c\n\n").unwrap(), b" a\0c\n");
        assert!(read(b"\n").unwrap_err().to_string().ends_with("is empty"));
    }

    #[test]
    fn an_int_key_is_that_many_nul_bytes() {
        assert_eq!(read_int(file(b"510210\n", 0o600).path()).unwrap(), vec![0; 510_210]);
        for text in [&b"0"[..], b"-1", b"abc", b"", b"99999999999999999999"] {
            let error = read_int(file(text, 0o600).path()).unwrap_err().to_string();
            assert!(error.contains("expected a decimal number from 1 to"), "{error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_key_file_that_others_can_read_is_refused() {
        let shared = file(b"abc", 0o644);
        let error = KeyArguments::read_file(shared.path()).err().unwrap().to_string();
        assert!(error.contains("(mode 644); run: chmod 600 "), "{error}");
    }

    #[test]
    fn a_new_key_is_strong_private_and_made_once() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("authkey");
        make(&path).unwrap();
        let key = KeyArguments::read_file(&path).unwrap().bytes;
        assert_eq!(key.len(), 2 * NEW_KEY_LEN);
        make(&path).unwrap();
        assert_eq!(KeyArguments::read_file(&path).unwrap().bytes, key);
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 1, "no drafts are left");
    }
}
