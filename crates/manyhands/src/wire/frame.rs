//! Length-prefixed frames: the outermost layer of every connection.
//!
//! A frame is a big-endian `i32` length and that many bytes. Length −1 announces a `u64` length
//! behind it. Nothing is allocated before the length is checked.
//! Source: CPython `Lib/multiprocessing/connection.py`, `Connection._send_bytes` and `_recv_bytes`.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Largest frame during authentication, in bytes. CPython's own bound.
pub const AUTH_FRAME_BYTES_MAX: u64 = 256;

/// Why a length header cannot be followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// A negative length other than −1.
    #[error("frame with the negative length {0}")]
    NegativeLength(i32),
    /// More than the receiver accepts.
    #[error("frame of {len} bytes exceeds the limit of {limit} bytes")]
    TooLong {
        /// Announced length, in bytes.
        len: u64,
        /// The receiver's limit, in bytes.
        limit: u64,
    },
}

/// The header at the start of `buf`: its own length and that of the body, once both are known.
fn header(buf: &[u8]) -> Result<Option<(usize, u64)>, FrameError> {
    let Some((short, rest)) = buf.split_first_chunk::<4>() else { return Ok(None) };
    match i32::from_be_bytes(*short) {
        -1 => Ok(rest.first_chunk::<8>().map(|long| (12, u64::from_be_bytes(*long)))),
        negative @ ..-1 => Err(FrameError::NegativeLength(negative)),
        len => Ok(Some((4, u64::from(len.unsigned_abs())))),
    }
}

/// Splits the first complete frame off `buf` and returns its body.
///
/// Returns `None` while bytes are missing; `buf` is then unchanged. `limit` is the largest body
/// accepted, in bytes.
///
/// # Errors
///
/// [`FrameError`] if the header is malformed or announces more than `limit`; `buf` is unchanged
/// and the connection should be closed, unless a [`Decoder`] steps over the body.
pub fn split(buf: &mut BytesMut, limit: u64) -> Result<Option<Bytes>, FrameError> {
    let Some((header_len, len)) = header(buf)? else { return Ok(None) };
    if len > limit {
        return Err(FrameError::TooLong { len, limit });
    }
    let Some(end) = usize::try_from(len).ok().and_then(|len| header_len.checked_add(len)) else {
        return Err(FrameError::TooLong { len, limit: usize::MAX as u64 });
    };
    if buf.len() < end {
        return Ok(None);
    }
    Ok(Some(take_body(buf, header_len, end)))
}

/// Takes the body of the frame that ends at `end` off `buf`, all of which has come.
fn take_body(buf: &mut BytesMut, header_len: usize, end: usize) -> Bytes {
    buf.advance(header_len);
    // What is alone in its buffer needs no count of who shares that.
    let is_alone = buf.len() == end - header_len;
    let body = if is_alone { std::mem::take(buf) } else { buf.split_to(end - header_len) };
    body.freeze()
}

/// Appends `body` as one frame to `out`.
///
/// Bodies over 2 GiB take the long form, which Python 3.8 and later read.
pub fn push(body: &[u8], out: &mut BytesMut) {
    push_header(body.len(), out);
    out.extend_from_slice(body);
}

/// Appends the header of a frame of `len` bytes to `out`; the body must follow.
fn push_header(len: usize, out: &mut BytesMut) {
    match i32::try_from(len) {
        Ok(short) => out.put_i32(short),
        Err(_) => {
            out.put_i32(-1);
            out.put_u64(len as u64);
        }
    }
}

/// Parts of a message above this many bytes are shared instead of copied: below, a copy costs less
/// than one more part for the system to gather.
pub const SHARED_LEN_MIN: usize = 4 << 10;

/// Bytes on their way to a peer. Large parts, such as items, it shares with whoever else has them.
#[derive(Debug, Default)]
pub struct Outbound {
    own: BytesMut,
    /// Parts that belong before the byte of `own` with this index, in order.
    shared: Vec<(usize, Bytes)>,
    shared_len: usize,
}

/// A place in an [`Outbound`], for as long as nothing is split off.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    own: usize,
    shared: usize,
    len: usize,
}

impl Outbound {
    /// Its length, in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.own.len() + self.shared_len
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops all of it.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Nothing, with the memory that this has taken, if that is some and no more than `max` bytes.
    #[must_use]
    pub fn emptied(mut self, max: usize) -> Option<Self> {
        self.own.clear();
        self.shared.clear();
        self.shared_len = 0;
        let kept = self.own.capacity();
        (kept > 0 && kept <= max && self.shared.capacity() <= max / size_of::<(usize, Bytes)>())
            .then_some(self)
    }

    /// Makes room for so many bytes that are copied.
    pub fn reserve(&mut self, additional: usize) {
        if self.own.capacity() == 0 {
            self.own = BytesMut::with_capacity(additional);
        }
        self.own.reserve(additional);
    }

    /// For parts that are copied.
    pub fn own(&mut self) -> &mut BytesMut {
        &mut self.own
    }

    /// Appends bytes, as a part that is shared if they are many.
    pub fn put(&mut self, bytes: &Bytes) {
        if bytes.len() <= SHARED_LEN_MIN {
            return self.own.extend_from_slice(bytes);
        }
        self.shared.push((self.own.len(), bytes.clone()));
        self.shared_len += bytes.len();
    }

    /// The place where the next bytes go.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark { own: self.own.len(), shared: self.shared.len(), len: self.len() }
    }

    /// How many bytes came after `mark`.
    #[must_use]
    pub fn len_from(&self, mark: &Mark) -> usize {
        self.len().saturating_sub(mark.len)
    }

    /// Takes back all that came after `mark`.
    pub fn truncate(&mut self, mark: &Mark) {
        self.own.truncate(mark.own);
        self.shared.truncate(mark.shared);
        self.shared_len = mark.len - mark.own;
    }

    /// Writes over what was copied at `mark`.
    pub fn overwrite(&mut self, mark: &Mark, bytes: &[u8]) {
        if let Some(place) = self.own.get_mut(mark.own..mark.own + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    /// Appends what `write` does as one frame.
    pub fn push_frame(&mut self, write: impl FnOnce(&mut Self)) {
        let mark = self.mark();
        let Mark { own: start, shared: before, .. } = mark;
        self.own.put_u32(0);
        write(self);
        let len = self.len_from(&mark) - size_of::<u32>();
        match i32::try_from(len) {
            Ok(len) => self.overwrite(&mark, &len.to_be_bytes()),
            Err(_) => {
                let body = self.own.split_off(start + size_of::<u32>());
                self.own.truncate(start);
                push_header(len, &mut self.own);
                let moved = self.own.len() - start - size_of::<u32>();
                self.own.unsplit(body);
                self.shared.iter_mut().skip(before).for_each(|(at, _)| *at += moved);
            }
        }
    }

    /// Appends all of `other`.
    pub fn append(&mut self, other: Self) {
        if self.is_empty() {
            *self = other;
            return;
        }
        let Self { own, shared, shared_len } = other;
        let before = self.own.len();
        self.own.unsplit(own);
        self.shared.extend(shared.into_iter().map(|(at, part)| (before + at, part)));
        self.shared_len += shared_len;
    }

    /// Splits off what comes after the first `len` bytes, none of which is shared.
    #[must_use]
    pub fn split_off(mut self, len: usize) -> Self {
        self.own.advance(len);
        self.shared.iter_mut().for_each(|(at, _)| *at -= len);
        self
    }

    /// Splits off the first `len` bytes, nothing of which is copied.
    ///
    /// # Panics
    ///
    /// If there are fewer, or `len` lies inside of a part that is shared.
    #[must_use]
    pub fn split_to(&mut self, len: usize) -> Self {
        let mut shared_len = 0;
        let is_before = |(at, part): &&(usize, Bytes)| {
            let is_before = at + shared_len < len;
            shared_len += if is_before { part.len() } else { 0 };
            is_before
        };
        let count = self.shared.iter().take_while(is_before).count();
        let own_len = len.checked_sub(shared_len).expect("`len` is no place inside of a part");
        let shared = self.shared.drain(..count).collect();
        self.shared.iter_mut().for_each(|(at, _)| *at -= own_len);
        self.shared_len -= shared_len;
        Self { own: self.own.split_to(own_len), shared, shared_len }
    }

    /// All of it, if nothing of it is shared.
    #[must_use]
    pub fn whole(&self) -> Option<&[u8]> {
        self.shared.is_empty().then_some(&*self.own)
    }

    /// Its parts, in order.
    pub fn into_parts(self) -> impl Iterator<Item = Bytes> {
        let Self { own, shared, .. } = self;
        let mut own = own.freeze();
        let mut taken = 0;
        let mut shared = shared.into_iter();
        let mut next = None;
        std::iter::from_fn(move || {
            if let Some(part) = next.take() {
                return Some(part);
            }
            match shared.next() {
                Some((at, part)) => {
                    let before = own.split_to(at - taken);
                    taken = at;
                    if before.is_empty() {
                        return Some(part);
                    }
                    next = Some(part);
                    Some(before)
                }
                None => Some(std::mem::take(&mut own)).filter(|rest| !rest.is_empty()),
            }
        })
    }
}

/// What a [`Decoder`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A whole body.
    Body(Bytes),
    /// A body over the limit; it was passed over without being kept.
    TooLong {
        /// Its length, in bytes.
        len: u64,
        /// The limit, in bytes.
        limit: u64,
    },
}

/// What stands in front of a body.
pub trait Header: Copy {
    /// The header at the start of `buf` and its own length, once all of it is there.
    ///
    /// # Errors
    ///
    /// [`FrameError::NegativeLength`]; the connection should be closed.
    fn parse(buf: &[u8]) -> Result<Option<(usize, Self)>, FrameError>;

    /// The length of the body, in bytes.
    fn body_len(&self) -> u64;
}

/// The header of CPython's frames, which is their length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Length(u64);

impl Header for Length {
    fn parse(buf: &[u8]) -> Result<Option<(usize, Self)>, FrameError> {
        Ok(header(buf)?.map(|(header_len, len)| (header_len, Self(len))))
    }

    fn body_len(&self) -> u64 {
        self.0
    }
}

/// Splits frames like [`split`], but steps over a body that is too long, so that the conversation
/// can go on after it.
#[derive(Debug)]
pub struct Decoder<H = Length> {
    limit: u64,
    /// The header of the body being passed over, and how much of that is still to come.
    passing: Option<(H, u64)>,
}

impl Decoder {
    /// Takes the next frame off `buf`; `None` while bytes are missing.
    ///
    /// # Errors
    ///
    /// [`FrameError::NegativeLength`]; the connection should be closed.
    pub fn next(&mut self, buf: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        Ok(self.next_with_header(buf)?.map(|(_, frame)| frame))
    }
}

impl<H: Header> Decoder<H> {
    /// A decoder that keeps bodies of up to `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self { limit, passing: None }
    }

    /// Takes the next frame off `buf`, with its header; `None` while bytes are missing.
    ///
    /// # Errors
    ///
    /// [`FrameError::NegativeLength`]; the connection should be closed.
    pub fn next_with_header(
        &mut self,
        buf: &mut BytesMut,
    ) -> Result<Option<(H, Frame)>, FrameError> {
        if self.passing.is_none() {
            let Some((header_len, header)) = H::parse(buf)? else { return Ok(None) };
            let len = header.body_len();
            if let Some(end) = self.end(header_len, len) {
                if buf.len() < end {
                    return Ok(None);
                }
                let body = take_body(buf, header_len, end);
                return Ok(Some((header, Frame::Body(body))));
            }
            buf.advance(header_len);
            self.passing = Some((header, len));
        }
        Ok(self.pass_over(buf))
    }

    /// Where a frame ends; `None` if its body is too long.
    fn end(&self, header_len: usize, len: u64) -> Option<usize> {
        if len > self.limit {
            return None;
        }
        usize::try_from(len).ok()?.checked_add(header_len)
    }

    /// Drops what `buf` holds of the body being passed over; its report once all of it has come.
    fn pass_over(&mut self, buf: &mut BytesMut) -> Option<(H, Frame)> {
        let (header, rest) = self.passing.as_mut()?;
        let here = usize::try_from(*rest).map_or(buf.len(), |rest| rest.min(buf.len()));
        buf.advance(here);
        *rest -= here as u64;
        if *rest > 0 {
            return None;
        }
        let header = *header;
        self.passing = None;
        Some((header, Frame::TooLong { len: header.body_len(), limit: self.limit }))
    }

    /// Whether a frame has begun of which bytes are missing. `buf` is what [`next`](Self::next)
    /// left behind.
    #[must_use]
    pub fn is_inside_frame(&self, buf: &BytesMut) -> bool {
        self.passing.is_some() || !buf.is_empty()
    }

    /// Whether the bytes that come next are dropped.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        self.passing.is_some()
    }

    /// How many bytes the frame at the start of `buf` still misses, as far as its header tells.
    #[must_use]
    pub fn missing(&self, buf: &BytesMut) -> u64 {
        match (self.passing, H::parse(buf)) {
            (Some((_, rest)), _) => rest,
            (None, Ok(Some((header_len, header)))) => {
                let len = (header_len as u64).saturating_add(header.body_len());
                len.saturating_sub(buf.len() as u64)
            }
            (None, _) => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buf(bytes: &[u8]) -> BytesMut {
        BytesMut::from(bytes)
    }

    #[test]
    fn a_frame_cut_anywhere_waits_for_the_rest() {
        let mut whole = BytesMut::new();
        push(b"hello", &mut whole);
        for cut in 0..whole.len() {
            let mut part = buf(&whole[..cut]);
            assert_eq!(split(&mut part, 100), Ok(None));
            assert_eq!(part, whole[..cut], "an incomplete frame stays as it is");
        }
        assert_eq!(split(&mut whole, 100), Ok(Some(Bytes::from_static(b"hello"))));
        assert!(whole.is_empty());
    }

    #[test]
    fn the_bytes_after_a_frame_are_kept() {
        let mut both = BytesMut::new();
        push(b"#WELCOME#", &mut both);
        push(b"request", &mut both);
        assert_eq!(split(&mut both, 100).unwrap().unwrap(), "#WELCOME#");
        assert_eq!(split(&mut both, 100).unwrap().unwrap(), "request");
    }

    #[test]
    fn the_long_form_is_read_for_any_length() {
        let mut long = buf(b"\xff\xff\xff\xff\0\0\0\0\0\0\0\x03abcrest");
        assert_eq!(split(&mut long, 100).unwrap().unwrap(), "abc");
        assert_eq!(long, "rest"[..]);
    }

    #[test]
    fn a_negative_length_is_refused() {
        let mut minus_two = buf(b"\xff\xff\xff\xfe");
        assert_eq!(split(&mut minus_two, 100), Err(FrameError::NegativeLength(-2)));
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_its_body_comes() {
        let huge = b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0";
        let error = split(&mut buf(huge), 256).unwrap_err();
        assert_eq!(error, FrameError::TooLong { len: 1 << 63, limit: 256 });
        assert_eq!(
            error.to_string(),
            "frame of 9223372036854775808 bytes exceeds the limit of 256 bytes"
        );
    }

    #[test]
    fn an_empty_frame_is_a_frame() {
        assert_eq!(split(&mut buf(&[0; 4]), 0), Ok(Some(Bytes::new())));
    }

    #[test]
    fn a_message_of_shared_parts_is_what_copies_would_be() {
        let large = Bytes::from(vec![7; SHARED_LEN_MIN + 1]);
        let mut outbound = Outbound::default();
        let mut copied = BytesMut::new();
        for parts in [&[&b"a"[..], &large, &large, b"b"][..], &[&large], &[b"c"], &[]] {
            outbound.push_frame(|out| parts.iter().for_each(|it| out.put(&large.slice_ref_or(it))));
            push(&parts.concat(), &mut copied);
        }
        assert_eq!(outbound.len(), copied.len());
        let parts: Vec<_> = outbound.into_parts().collect();
        assert_eq!(parts.iter().filter(|part| part.as_ptr() == large.as_ptr()).count(), 3);
        assert_eq!(parts.concat(), copied);
    }

    #[test]
    fn a_message_is_split_between_any_two_frames() {
        let large = Bytes::from(vec![7; SHARED_LEN_MIN + 1]);
        let bodies = [&[&b"a"[..], &large, b"b"][..], &[&large], &[b"c"], &[&large, &large], &[]];
        for count in 0..=bodies.len() {
            let (mut outbound, mut ends) = (Outbound::default(), vec![0]);
            for parts in bodies {
                outbound.push_frame(|out| {
                    parts.iter().for_each(|it| out.put(&large.slice_ref_or(it)));
                });
                ends.push(outbound.len());
            }
            let first = outbound.split_to(ends[count]);
            assert_eq!(first.len(), ends[count]);
            assert_eq!(outbound.len(), ends[bodies.len()] - ends[count]);
            let mut frames = BytesMut::from(&*concat(first));
            frames.extend_from_slice(&concat(outbound));
            for parts in bodies {
                let body = split(&mut frames, u64::MAX).unwrap().expect("it is whole");
                assert_eq!(body, parts.concat());
            }
            assert!(frames.is_empty());
        }
    }

    fn concat(outbound: Outbound) -> Vec<u8> {
        outbound.into_parts().collect::<Vec<_>>().concat()
    }

    trait SliceRefOr {
        fn slice_ref_or(&self, part: &[u8]) -> Bytes;
    }

    impl SliceRefOr for Bytes {
        fn slice_ref_or(&self, part: &[u8]) -> Bytes {
            if part == self { self.clone() } else { Self::copy_from_slice(part) }
        }
    }

    #[test]
    fn a_decoder_steps_over_a_body_that_is_too_long() {
        let mut stream = BytesMut::new();
        push(&[7; 1000], &mut stream);
        push(b"next", &mut stream);
        let mut decoder = Decoder::new(10);
        let mut inbound = BytesMut::new();
        let mut found = Vec::new();
        for chunk in stream.chunks(64) {
            inbound.extend_from_slice(chunk);
            while let Some(frame) = decoder.next(&mut inbound).unwrap() {
                found.push(frame);
            }
            assert!(inbound.len() <= 64, "a body that is too long is not kept");
        }
        let next = Frame::Body(Bytes::from_static(b"next"));
        assert_eq!(found, [Frame::TooLong { len: 1000, limit: 10 }, next]);
    }

    #[test]
    fn a_decoder_says_how_much_is_missing() {
        let decoder: Decoder = Decoder::new(100);
        assert!(!decoder.is_inside_frame(&buf(b"")));
        assert!(decoder.is_inside_frame(&buf(b"\0\0")));
        assert_eq!(decoder.missing(&buf(b"\0\0\0\x05he")), 3);
    }
}
