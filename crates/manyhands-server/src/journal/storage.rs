//! What the journal needs of a disk, and the directory that it mostly is.
//!
//! Invariant: nothing here is durable before `sync`, and no name before `sync_directory`.

use std::fmt::Debug;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
#[cfg(target_os = "linux")]
use std::io::IoSliceMut;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::JournalError;

/// A directory of files. Tests replace it by one that fails and forgets.
pub trait Storage: Debug + Send + Sync {
    /// Names of all files.
    fn list(&self) -> io::Result<Vec<String>>;
    /// An existing file.
    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>>;
    /// A new, empty file, in the place of any that has the name.
    fn create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>>;
    /// Gives a file another name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Takes a file away.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes the names durable.
    fn sync_directory(&self) -> io::Result<()>;
}

/// An open file. All calls are positional, so clones of the handle can be used at once.
pub trait StorageFile: Debug + Send + Sync {
    /// Its length, in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Fills `bytes` from `offset` on; `UnexpectedEof` if there are fewer.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
    /// The same, unless it would have to wait for the disk: false then, and where that cannot be known.
    fn read_at_once(&self, bytes: &mut [u8], offset: u64) -> io::Result<bool> {
        self.read_at(bytes, offset).map(|()| true)
    }
    /// Writes all `bytes`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes sure that the first `len` bytes have their place on the disk; they read as zeros where
    /// they were not written.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Makes the contents durable.
    fn sync(&self) -> io::Result<()>;
}

/// The first `len` bytes of a file.
pub(super) fn read_start(file: &dyn StorageFile, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    file.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// A directory of this machine.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    writable: bool,
    /// Nobody else has the directory as long as this is open.
    lock: Option<File>,
}

impl Directory {
    /// Makes the directory if need be, and locks it against every other server.
    ///
    /// # Errors
    ///
    /// [`JournalError::InUse`] if another process has it, [`JournalError::ReadOnly`] if it cannot be
    /// written, [`JournalError::Io`].
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                JournalError::ReadOnly(path.to_owned())
            }
            _ => JournalError::io("open", &path.display().to_string(), error),
        };
        private_directory().create(path).map_err(failed)?;
        let lock = open_locked(&path.join("lock")).map_err(failed)?;
        let lock = lock.ok_or_else(|| JournalError::InUse(path.to_owned()))?;
        Ok(Self { path: path.to_owned(), writable: true, lock: Some(lock) })
    }

    /// The directory as it is, to be looked at while no server can use it.
    ///
    /// # Errors
    ///
    /// [`JournalError::InUse`], [`JournalError::Io`].
    pub fn open_stopped(path: &Path) -> Result<Self, JournalError> {
        let name = path.join("lock");
        let lock = match open_locked(&name) {
            _ if !name.exists() => None,
            // No server could use it.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => None,
            Err(error) => {
                return Err(JournalError::io("lock", &name.display().to_string(), error));
            }
            Ok(None) => return Err(JournalError::InUse(path.to_owned())),
            Ok(lock) => lock,
        };
        Ok(Self { path: path.to_owned(), writable: false, lock })
    }

    /// The directory as it is, to be looked at. A server may be writing to it.
    pub fn open_read_only(path: &Path) -> Self {
        Self { path: path.to_owned(), writable: false, lock: None }
    }
}

impl Drop for Directory {
    /// Closing alone would leave the lock to a child that is being forked at this moment.
    fn drop(&mut self) {
        #[cfg(unix)]
        if let Some(lock) = &self.lock {
            rustix::fs::flock(lock, rustix::fs::FlockOperation::Unlock).ok();
        }
    }
}

impl Storage for Directory {
    fn list(&self) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(&self.path)?;
        let names = entries.map(|entry| Ok(entry?.file_name().into_string()));
        names.filter_map(|name: io::Result<_>| name.map(Result::ok).transpose()).collect()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let file = OpenOptions::new().read(true).write(self.writable).open(self.path.join(name))?;
        Ok(Arc::new(file))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let mut options = private_file();
        let file = options.read(true).truncate(true);
        Ok(Arc::new(file.open(self.path.join(name))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    #[cfg(unix)]
    fn sync_directory(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    #[cfg(not(unix))]
    fn sync_directory(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(unix)]
impl StorageFile for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, bytes, offset)
    }

    /// Some file systems cannot tell, and some kernels do not know the flag. Whatever the matter is, a
    /// read that may wait does it right.
    #[cfg(target_os = "linux")]
    fn read_at_once(&self, bytes: &mut [u8], offset: u64) -> io::Result<bool> {
        use rustix::io::{ReadWriteFlags, preadv2};
        let len = bytes.len();
        let read = preadv2(self, &mut [IoSliceMut::new(bytes)], offset, ReadWriteFlags::NOWAIT);
        Ok(read == Ok(len))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        write_whole(
            bytes,
            |bytes| FileExt::write_at(self, bytes, offset),
            |bytes| FileExt::write_all_at(self, bytes, offset),
        )
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        allocate(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// Writes `bytes` by `once`, and all of them again by `again` if the system says that it wrote any
/// other number of bytes.
///
/// A local file is written whole or not at all unless the disk is full, so another number is a reason
/// to trust none of it: a frame with a hole in it would be found only when a start refuses it. The
/// second write finds the disk full too, and says so.
#[cfg(unix)]
fn write_whole(
    bytes: &[u8],
    once: impl FnOnce(&[u8]) -> io::Result<usize>,
    again: impl FnOnce(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    match once(bytes) {
        Ok(written) if written == bytes.len() => Ok(()),
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => again(bytes),
    }
}

#[cfg(windows)]
impl StorageFile for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match std::os::windows::fs::FileExt::seek_read(self, bytes, offset)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => {
                    bytes = bytes.get_mut(read..).unwrap_or_default();
                    offset += read as u64;
                }
            }
        }
        Ok(())
    }

    fn write_at(&self, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = std::os::windows::fs::FileExt::seek_write(self, bytes, offset)?;
            bytes = bytes.get(written..).unwrap_or_default();
            offset += written as u64;
        }
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        allocate(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

#[cfg(target_os = "linux")]
fn allocate(file: &File, len: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    match fallocate(file, FallocateFlags::empty(), 0, len) {
        Err(rustix::io::Errno::OPNOTSUPP) => write_zeros(file, len),
        done => Ok(done?),
    }
}

#[cfg(not(target_os = "linux"))]
fn allocate(file: &File, len: u64) -> io::Result<()> {
    write_zeros(file, len)
}

/// Allocates the slow way what is not there yet.
fn write_zeros(file: &File, len: u64) -> io::Result<()> {
    static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
    let mut at = StorageFile::size(file)?;
    while at < len {
        let step = ZEROS.len().min(usize::try_from(len - at).unwrap_or(usize::MAX));
        file.write_at(ZEROS.get(..step).unwrap_or_default(), at)?;
        at += step as u64;
    }
    Ok(())
}

/// Makes directories that only their owner may read, whatever the umask allows.
fn private_directory() -> DirBuilder {
    let mut directory = DirBuilder::new();
    directory.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut directory, 0o700);
    directory
}

/// Makes files that only their owner may read.
fn private_file() -> OpenOptions {
    let mut file = OpenOptions::new();
    file.write(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut file, 0o600);
    file
}

/// The first of a data directory and its files that other users have access to, and the remedy.
#[cfg(unix)]
pub fn readable_by_others(path: &Path) -> io::Result<Option<String>> {
    use std::os::unix::fs::MetadataExt;
    if !path.is_dir() {
        return Ok(None);
    }
    let shared = |path: &Path| {
        let mode = path.metadata()?.mode() & 0o777;
        Ok::<_, io::Error>((mode & 0o077 != 0).then_some(mode))
    };
    if let Some(mode) = shared(path)? {
        let path = path.display();
        return Ok(Some(format!("{path} (mode {mode:o}); run: chmod 700 {path}")));
    }
    for entry in fs::read_dir(path)? {
        let file = entry?.path();
        if let Some(mode) = shared(&file)? {
            let (file, path) = (file.display(), path.display());
            return Ok(Some(format!("{file} (mode {mode:o}); run: chmod 600 {path}/*")));
        }
    }
    Ok(None)
}

#[cfg(not(unix))]
pub fn readable_by_others(_: &Path) -> io::Result<Option<String>> {
    Ok(None)
}

/// The lock file, or nothing if another process has it.
#[cfg(unix)]
fn open_locked(path: &Path) -> io::Result<Option<File>> {
    use rustix::fs::{FlockOperation, flock};
    let file = private_file().truncate(false).open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(windows)]
fn open_locked(path: &Path) -> io::Result<Option<File>> {
    use std::os::windows::fs::OpenOptionsExt;
    const SHARING_VIOLATION: i32 = 32;
    match private_file().truncate(false).share_mode(0).open(path) {
        Err(error) if error.raw_os_error() == Some(SHARING_VIOLATION) => Ok(None),
        file => file.map(Some),
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_it_wrote_in_part_is_written_again_whole() {
        // It may even have written nothing, or claim more than it was given.
        for claimed in [0, 100, 5000] {
            let mut second = Vec::new();
            let again = |bytes: &[u8]| {
                second.extend_from_slice(bytes);
                Ok(())
            };
            write_whole(&[7; 4096], |_| Ok(claimed), again).unwrap();
            assert_eq!(second, [7; 4096]);
        }
    }

    #[test]
    fn what_was_written_whole_or_failed_is_not_written_again() {
        let again = |_: &[u8]| panic!("once is enough");
        write_whole(&[7; 4096], |bytes| Ok(bytes.len()), again).unwrap();
        let failed = write_whole(&[7; 4096], |_| Err(io::Error::other("broken")), again);
        assert_eq!(failed.unwrap_err().to_string(), "broken");
    }
}
