//! A disk in memory that forgets what was not synced, and fails when told to.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, ThreadId};

use super::beside;
use super::random::Random;
use crate::journal::storage::{Storage, StorageFile};

/// Writes are kept or lost in pieces of this size, in bytes.
const SECTOR: usize = 512;

#[derive(Debug, Clone, Default)]
pub(crate) struct Disk(Arc<Mutex<State>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process ends in the middle of the call.
    Crash,
    /// The call fails, and what was to be synced is lost.
    Broken,
}

#[derive(Debug, Default)]
struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// Changes of names since the directory was synced.
    renamed: Vec<Change>,
    /// Calls that change something, so far.
    calls: u64,
    fault: Option<(u64, Fault)>,
    is_dead: bool,
    capacity: Option<usize>,
    cold: Option<Arc<Cold>>,
}

/// A disk of which nothing is in memory, and that takes its time.
#[derive(Debug)]
struct Cold {
    /// Who must not wait for it.
    busy: ThreadId,
    is_over: Mutex<bool>,
    over: Condvar,
}

/// Dropped, it lets those go who wait for a disk that takes its time.
struct Slowness(Arc<Cold>);

impl Drop for Slowness {
    fn drop(&mut self) {
        *self.0.is_over.lock().unwrap() = true;
        self.0.over.notify_all();
    }
}

#[derive(Debug, Clone)]
enum Change {
    Add(String, usize),
    Rename(String, String),
    Remove(String),
}

#[derive(Debug, Default)]
struct Inode {
    /// What the system shows.
    seen: Vec<u8>,
    durable: Vec<u8>,
    /// What was written since the last sync. An allocation writes nothing, at the new end.
    dirty: Vec<(usize, Vec<u8>)>,
}

#[derive(Debug)]
struct Handle {
    disk: Disk,
    inode: usize,
}

impl Disk {
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        let disk = Self::default();
        disk.lock().capacity = Some(bytes);
        disk
    }

    pub(crate) fn of(files: &BTreeMap<String, Vec<u8>>) -> Self {
        let disk = Self::default();
        let mut state = disk.lock();
        for (name, bytes) in files {
            let inode = state.inodes.len();
            let (seen, durable) = (bytes.clone(), bytes.clone());
            state.inodes.push(Inode { seen, durable, dirty: Vec::new() });
            state.names.insert(name.clone(), inode);
            state.durable_names.insert(name.clone(), inode);
        }
        drop(state);
        disk
    }

    pub(crate) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.lock();
        let files = state.names.iter();
        files.map(|(name, inode)| (name.clone(), state.inodes[*inode].seen.clone())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Makes the `nth` call from now on that changes something fail.
    pub(crate) fn fail(&self, nth: u64, fault: Fault) {
        let mut state = self.lock();
        state.fault = Some((state.calls + nth, fault));
    }

    /// From now on this thread must not read. Others can once `while_it_waits` is over.
    pub(crate) async fn be_slow(&self, while_it_waits: impl Future<Output = ()>) {
        let (busy, is_over, over) = (thread::current().id(), Mutex::new(false), Condvar::new());
        let slowness = Slowness(Arc::new(Cold { busy, is_over, over }));
        self.lock().cold = Some(slowness.0.clone());
        while_it_waits.await;
    }

    pub(crate) fn set_capacity(&self, bytes: usize) {
        self.lock().capacity = Some(bytes);
    }

    pub(crate) fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// Whether the process died of a fault.
    pub(crate) fn is_dead(&self) -> bool {
        self.lock().is_dead
    }

    /// The process ended; the system lives on.
    pub(crate) fn restart(&self) {
        let mut state = self.lock();
        state.is_dead = false;
        state.fault = None;
    }

    /// The power went. Of what was not synced, anything or nothing is there.
    pub(crate) fn lose_power(&self, random: &mut Random) {
        self.restart();
        let mut state = self.lock();
        let State { inodes, names, durable_names, renamed, .. } = &mut *state;
        let odds = [0, 50, 90, 100][random.below(4)];
        for inode in inodes {
            inode.forget(odds, random);
        }
        for change in renamed.drain(..) {
            if random.percent(odds) {
                change.apply(durable_names);
            }
        }
        names.clone_from(durable_names);
    }
}

impl State {
    /// Counts a call; the fault if it is to fail.
    fn call(&mut self) -> io::Result<Option<Fault>> {
        if self.is_dead {
            return Err(io::Error::other("the process is dead"));
        }
        self.calls += 1;
        let fault = self.fault.filter(|(at, _)| *at == self.calls).map(|(_, fault)| fault);
        self.is_dead = fault == Some(Fault::Crash);
        Ok(fault)
    }

    fn change(&mut self, change: Change) -> io::Result<()> {
        let fault = self.call()?;
        if fault != Some(Fault::Broken) {
            change.apply(&mut self.names);
            self.renamed.push(change);
        }
        failed(fault)
    }

    fn grow(&mut self, inode: usize, len: usize) -> io::Result<()> {
        let used: usize = self.names.values().map(|inode| self.inodes[*inode].seen.len()).sum();
        let more = len.saturating_sub(self.inodes[inode].seen.len());
        if self.capacity.is_some_and(|capacity| more > 0 && used + more > capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Add(name, inode) => drop(names.insert(name.clone(), *inode)),
            Self::Remove(name) => drop(names.remove(name)),
            Self::Rename(from, to) => {
                if let Some(inode) = names.remove(from) {
                    names.insert(to.clone(), inode);
                }
            }
        }
    }
}

impl Inode {
    fn forget(&mut self, odds: usize, random: &mut Random) {
        let torn = random.percent(50);
        let last = self.dirty.len().saturating_sub(1);
        for (index, (offset, mut bytes)) in std::mem::take(&mut self.dirty).into_iter().enumerate()
        {
            if torn && index == last && !bytes.is_empty() {
                bytes.truncate(random.below(bytes.len()));
                put(&mut self.durable, offset, &bytes);
                continue;
            }
            let mut at = 0;
            while at < bytes.len() {
                let end = bytes.len().min(at + SECTOR - (offset + at) % SECTOR);
                if random.percent(odds) {
                    put(&mut self.durable, offset + at, &bytes[at..end]);
                }
                at = end;
            }
            if bytes.is_empty() && random.percent(odds) {
                put(&mut self.durable, offset, &[]);
            }
        }
        self.seen.clone_from(&self.durable);
    }
}

fn put(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    file.resize(file.len().max(offset + bytes.len()), 0);
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
}

fn failed(fault: Option<Fault>) -> io::Result<()> {
    match fault {
        None => Ok(()),
        Some(Fault::Crash) => Err(io::Error::other("the process died")),
        Some(Fault::Broken) => Err(io::Error::from_raw_os_error(5)),
    }
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Storage for Disk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let inode = *self.lock().names.get(name).ok_or_else(not_found)?;
        Ok(Arc::new(Handle { disk: self.clone(), inode }))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        beside::pause()?;
        let mut state = self.lock();
        let inode = state.inodes.len();
        state.inodes.push(Inode::default());
        state.change(Change::Add(name.into(), inode))?;
        Ok(Arc::new(Handle { disk: self.clone(), inode }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        beside::pause()?;
        let mut state = self.lock();
        if !state.names.contains_key(from) {
            return Err(not_found());
        }
        state.change(Change::Rename(from.into(), to.into()))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        beside::pause()?;
        let mut state = self.lock();
        if !state.names.contains_key(name) {
            return Err(not_found());
        }
        state.change(Change::Remove(name.into()))
    }

    fn sync_directory(&self) -> io::Result<()> {
        beside::pause()?;
        let mut state = self.lock();
        let fault = state.call()?;
        if fault.is_none() {
            state.durable_names = state.names.clone();
            state.renamed.clear();
        }
        failed(fault)
    }
}

impl StorageFile for Handle {
    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.lock().inodes[self.inode].seen.len() as u64)
    }

    fn read_at_once(&self, bytes: &mut [u8], offset: u64) -> io::Result<bool> {
        let is_cold = self.disk.lock().cold.is_some();
        if is_cold { Ok(false) } else { self.read_at(bytes, offset).map(|()| true) }
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        beside::pause()?;
        let cold = self.disk.lock().cold.clone();
        if let Some(cold) = cold {
            assert_ne!(thread::current().id(), cold.busy, "this thread has others to serve");
            let is_over = cold.is_over.lock().unwrap();
            drop(cold.over.wait_while(is_over, |is_over| !*is_over).unwrap());
        }
        let state = self.disk.lock();
        let offset = usize::try_from(offset).unwrap();
        let range = offset..offset + bytes.len();
        let read = state.inodes[self.inode].seen.get(range).ok_or(io::ErrorKind::UnexpectedEof)?;
        bytes.copy_from_slice(read);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        beside::pause()?;
        let mut state = self.disk.lock();
        let offset = usize::try_from(offset).unwrap();
        let fault = state.call()?;
        state.grow(self.inode, offset + bytes.len())?;
        let inode = &mut state.inodes[self.inode];
        // A write that breaks has written something.
        let written = if fault == Some(Fault::Broken) { &bytes[..bytes.len() / 2] } else { bytes };
        put(&mut inode.seen, offset, written);
        inode.dirty.push((offset, written.to_vec()));
        failed(fault)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        beside::pause()?;
        let mut state = self.disk.lock();
        let len = usize::try_from(len).unwrap();
        failed(state.call()?)?;
        state.grow(self.inode, len)?;
        let inode = &mut state.inodes[self.inode];
        if inode.seen.len() < len {
            inode.seen.resize(len, 0);
            inode.dirty.push((len, Vec::new()));
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        beside::pause()?;
        let mut state = self.disk.lock();
        let fault = state.call()?;
        let inode = &mut state.inodes[self.inode];
        match fault {
            None => {
                for (offset, bytes) in inode.dirty.drain(..) {
                    put(&mut inode.durable, offset, &bytes);
                }
            }
            // The system believes that it has no contents to write any more.
            Some(Fault::Broken) => inode.dirty.retain(|(_, bytes)| bytes.is_empty()),
            Some(Fault::Crash) => {}
        }
        failed(fault)
    }
}
