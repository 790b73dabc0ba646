//! Reads the frames of a segment without all of it in memory.
//!
//! What is read stays in the processor's cache until it is looked at, and a start takes no more
//! memory than its largest frame.

use std::io;
use std::sync::Arc;

use super::frame::{self, ALIGNMENT, FRAME_HEADER_LEN, Frame};
use super::storage::StorageFile;

/// How much is read at a time, in bytes, unless a frame is longer.
const WINDOW_BYTES: usize = if cfg!(test) { 128 } else { 256 << 10 };

/// A file, of which a part is in memory.
#[derive(Debug)]
pub(super) struct Window {
    file: Arc<dyn StorageFile>,
    len: usize,
    /// Where the part begins.
    begin: usize,
    bytes: Vec<u8>,
}

impl Window {
    pub(super) fn new(file: Arc<dyn StorageFile>) -> io::Result<Self> {
        let len = usize::try_from(file.size()?).map_err(io::Error::other)?;
        Ok(Self { file, len, begin: 0, bytes: Vec::new() })
    }

    /// Length of the file, in bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// What is at `offset`: `len` bytes at least, or up to the end of the file.
    pub(super) fn at(&mut self, offset: usize, len: usize) -> io::Result<&[u8]> {
        let end = offset.saturating_add(len).min(self.len);
        if offset < self.begin || self.begin + self.bytes.len() < end {
            let rest = self.len.saturating_sub(offset);
            self.bytes.resize(len.max(WINDOW_BYTES).min(rest), 0);
            self.file.read_at(&mut self.bytes, offset as u64)?;
            self.begin = offset;
        }
        Ok(self.bytes.get(offset - self.begin..).unwrap_or_default())
    }

    /// The frame at `offset`, if an intact one is there.
    pub(super) fn frame(&mut self, offset: usize, seed: u32) -> io::Result<Option<Frame<'_>>> {
        Ok(self.any_frame(offset, seed)?.filter(Frame::is_whole))
    }

    /// The frame at `offset`, if one with an intact header is there.
    pub(super) fn any_frame(&mut self, offset: usize, seed: u32) -> io::Result<Option<Frame<'_>>> {
        let header = self.at(offset, FRAME_HEADER_LEN)?;
        let Some(len) = frame::len(header, seed) else { return Ok(None) };
        let frame = frame::parse(self.at(offset, len)?, 0, seed);
        Ok(frame.map(|frame| Frame { end: offset + frame.end, ..frame }))
    }

    /// Where the next intact frame at or after `offset` is of which `is` is true, wherever it begins.
    pub(super) fn find_frame(
        &mut self,
        mut offset: usize,
        seed: u32,
        is: impl Fn(Frame<'_>) -> bool,
    ) -> io::Result<Option<usize>> {
        while offset < self.len {
            let part = self.at(offset, ALIGNMENT)?;
            let Some(before) = frame::find(part) else {
                offset += part.len();
                continue;
            };
            offset += before;
            if self.frame(offset, seed)?.is_some_and(&is) {
                return Ok(Some(offset));
            }
            offset += ALIGNMENT;
        }
        Ok(None)
    }
}
