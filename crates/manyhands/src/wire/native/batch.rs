//! The entries of a body, read one by one.

use bytes::Bytes;

use super::reader::{Reader, length};
use super::{DecodeError, What};

/// Items, settlements or tasks of a body, read one by one. After an error there are no more.
#[derive(Debug, Clone)]
pub struct Batch<K> {
    fields: Reader,
    count: u32,
    next: u32,
    kind: K,
}

/// What entries a batch has.
pub trait Kind {
    /// One of them.
    type Entry;
    /// The least that one takes, in bytes.
    const LEN_MIN: usize;

    /// Reads one.
    fn read(&self, fields: &mut Reader) -> Result<Self::Entry, What>;
}

impl<K> Batch<K> {
    pub(super) fn new(fields: Reader, count: u32, kind: K) -> Self {
        Self { fields, count, next: 0, kind }
    }

    /// How many are left, as the header says; fewer may come.
    #[must_use]
    pub fn left(&self) -> u32 {
        self.count - self.next
    }

    /// The bytes of those that were not read.
    pub(super) fn rest(&self) -> Bytes {
        self.fields.rest()
    }

    /// What is wrong with the next entry, which is the last.
    #[cold]
    fn fail(&mut self, what: What) -> DecodeError {
        let item = Some(self.next);
        (self.next, self.fields) = (self.count, Reader::new(Bytes::new()));
        DecodeError { item, what }
    }
}

impl<K: Kind> Batch<K> {
    /// How many there can be, whatever the header says: for making room.
    #[must_use]
    pub fn capacity(&self) -> usize {
        length(self.left()).min(self.fields.left() / K::LEN_MIN)
    }
}

impl<K: Kind> Iterator for Batch<K> {
    type Item = Result<K::Entry, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.count {
            let what = self.fields.finish().err()?;
            return Some(Err(self.fail(what)));
        }
        match self.kind.read(&mut self.fields) {
            Ok(entry) => {
                self.next += 1;
                Some(Ok(entry))
            }
            Err(what) => Some(Err(self.fail(what))),
        }
    }
}
