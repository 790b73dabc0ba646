//! Authkeys in files.
//!
//! Nobody but the owner may read such a file: who knows the key can do anything with the queues.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::wire::auth::AuthKey;

/// Largest key, in bytes. The key of a script may be a number of NUL bytes, so this is ample.
const KEY_BYTES_MAX: u64 = 16 << 20;

impl AuthKey {
    /// Reads the key in a file: its bytes, without one newline at the end.
    ///
    /// # Errors
    ///
    /// That the file cannot be read, that others can read it, or that it holds no key. The text
    /// names the file.
    pub fn from_file(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        key_in(&read_private(path)?, &path.display())
    }

    /// Reads the key of a script that has an `int` for one, which means that many NUL bytes: the
    /// file holds the number in decimal digits. Such a key has no [`strength`](Self::strength).
    ///
    /// # Errors
    ///
    /// As [`from_file`](Self::from_file).
    pub fn from_int_file(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let text = read_private(path)?;
        let number = std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok());
        let number = number.filter(|number| (1..=KEY_BYTES_MAX).contains(number));
        let len = number.and_then(|number| usize::try_from(number).ok()).ok_or_else(|| {
            invalid(format!(
                "{} does not hold an int authkey; expected a decimal number from 1 to \
                 {KEY_BYTES_MAX}",
                path.display()
            ))
        })?;
        Ok(Self::new(vec![0; len]))
    }

    /// Reads the key that comes through a pipe, to its end: its bytes, without one newline at the
    /// end.
    ///
    /// # Errors
    ///
    /// That the pipe cannot be read, or holds no key. The text calls it `name`.
    pub fn from_reader(reader: impl Read, name: &str) -> io::Result<Self> {
        let bytes = read(reader).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot read the authkey from {name}: {error}"))
        })?;
        key_in(&bytes, &name)
    }
}

fn key_in(bytes: &[u8], name: &dyn std::fmt::Display) -> io::Result<AuthKey> {
    match bytes.strip_suffix(b"\n").unwrap_or(bytes) {
        [] => Err(invalid(format!("the authkey in {name} is empty"))),
        key => Ok(AuthKey::new(key)),
    }
}

/// Reads a file that nobody else may read.
fn read_private(path: &Path) -> io::Result<Vec<u8>> {
    let unreadable = |error: io::Error| {
        let text = format!("cannot read the authkey file {}: {error}", path.display());
        io::Error::new(error.kind(), text)
    };
    let file = File::open(path).map_err(unreadable)?;
    refuse_shared(&file, path)?;
    read(file).map_err(unreadable)
}

fn read(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if reader.take(KEY_BYTES_MAX + 1).read_to_end(&mut bytes)? as u64 > KEY_BYTES_MAX {
        return Err(invalid(format!("it is over {KEY_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(unix)]
fn refuse_shared(file: &File, path: &Path) -> io::Result<()> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let meta = file.metadata()?;
    // A pipe has no readers but the one that it was made for.
    if meta.file_type().is_fifo() || meta.mode() & 0o077 == 0 {
        return Ok(());
    }
    let text = format!(
        "other users can read the authkey file {path} (mode {mode:o}); run: chmod 600 {path}",
        path = path.display(),
        mode = meta.mode() & 0o777
    );
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

#[cfg(not(unix))]
fn refuse_shared(_: &File, _: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key file, removed when dropped.
    struct KeyFile(std::path::PathBuf);

    impl KeyFile {
        fn new(name: &str, content: &[u8], mode: u32) -> Self {
            let name = format!("manyhands-key-{}-{name}", std::process::id());
            let path = std::env::temp_dir().join(name);
            std::fs::write(&path, content).unwrap();
            #[cfg(unix)]
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode))
                .unwrap();
            Self(path)
        }
    }

    impl Drop for KeyFile {
        fn drop(&mut self) {
            std::fs::remove_file(&self.0).unwrap();
        }
    }

    #[test]
    fn one_newline_at_the_end_is_not_part_of_a_key() {
        for (content, len) in [(&b"abc"[..], 3), (b"abc\n", 3), (b" a\0c\n\n", 5)] {
            let file = KeyFile::new("newline", content, 0o600);
            assert_eq!(AuthKey::from_file(&file.0).unwrap().strength(), len);
            assert_eq!(AuthKey::from_reader(content, "a pipe").unwrap().strength(), len);
        }
        let error = AuthKey::from_reader(&b"\n"[..], "a pipe").unwrap_err();
        assert_eq!(error.to_string(), "the authkey in a pipe is empty");
    }

    #[test]
    fn a_file_that_is_missing_is_named() {
        let error = AuthKey::from_file("/no/such/file").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("/no/such/file"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_remedy() {
        for mode in [0o640, 0o604] {
            let file = KeyFile::new("shared", b"7", mode);
            let path = file.0.display();
            let expected = format!(
                "other users can read the authkey file {path} (mode {mode:o}); run: chmod 600 {path}"
            );
            assert_eq!(AuthKey::from_file(&file.0).unwrap_err().to_string(), expected);
            assert_eq!(AuthKey::from_int_file(&file.0).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn an_int_key_is_that_many_nul_bytes() {
        let read = |content: &[u8]| AuthKey::from_int_file(&KeyFile::new("int", content, 0o600).0);
        assert_eq!(read(b"510210\n").unwrap().strength(), 0);
        for text in [&b"0"[..], b"-1", b"abc", b"", b"99999999999999999999"] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains("expected a decimal number from 1 to"), "{error}");
        }
    }
}
