//! One linear pass over a pickle that finds which opcodes made which value.
//!
//! A pickle is a postfix program, so every value on the stack was made by one contiguous run of
//! opcodes: its [`Region`], from the end of the value (or mark) below it to the last opcode that
//! touched it. The pass runs the stack discipline alone. It builds nothing, does not recurse, and
//! remembers regions only near the bottom of the stack, where those of a request are: a payload of
//! any size costs no memory. Opcodes that POP and POP_MARK leave without a value belong to the
//! region of the next one, which may refer to memo entries made there.

use std::ops::Range;

use smallvec::{SmallVec, smallvec};

use super::memo::{Memo, MemoStyle};
use super::opcode::{Effect, Op, Opcode, Opcodes};
use super::payload::{PROTO_LEN, PROTOCOL_MAX};
use super::regions::{
    ARGUMENTS_MAX, Kind, Mark, PARTS_MAX, Progress, Region, Regions, Slot, Stack,
};
use super::{Limits, PickleError};

/// What holds for a whole pickle.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    /// What PROTO says; 0 without it.
    pub(super) declared: u8,
    /// The lowest protocol that reads every value of the pickle that needs no protocol 5 opcode.
    pub(super) required: u8,
    /// How the memo is numbered; `None` if nothing is stored.
    pub(super) style: Option<MemoStyle>,
    /// Where the opcodes begin, behind PROTO and the first FRAME.
    pub(super) body: usize,
}

/// A scanned pickle, as far as its [`Scanner`] took note of it.
#[derive(Debug)]
pub(super) struct Scan<'s> {
    pub(super) header: Header,
    /// The whole value.
    pub(super) root: Region,
    /// Its items, if it is a tuple of no more than four.
    pub(super) parts: &'s [Region],
    /// The positional arguments of a request; means nothing unless the third part is a
    /// [`Kind::Tuple`].
    pub(super) args: &'s Regions,
    /// Its keywords and values in turn; means nothing unless the fourth part is a [`Kind::Dict`].
    pub(super) kwargs: &'s Regions,
}

/// The pass itself.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    stack: Stack,
    memo: Memo,
    /// Offset behind the last opcode that makes a region [`remarkable`](Region::remarkable).
    remarkable: usize,
    declared: u8,
    /// The newest protocol that an opcode behind PROTO was of.
    newest: u8,
    // The latest tuple or dict at the place where a request has one.
    parts: Regions,
    args: Regions,
    kwargs: Regions,
}

/// Where a request has its parts: values below, and open marks.
const REQUEST: (usize, usize) = (0, 0);
const ARGS: (usize, usize) = (2, 1);
const KWARGS: (usize, usize) = (3, 1);

impl Scanner {
    /// Scans a whole pickle. What it finds stays in the scanner, which serves for one pickle.
    ///
    /// # Errors
    ///
    /// Whatever makes the bytes something that no unpickler loads, and the bounds of `limits`.
    pub(super) fn scan(&mut self, pickle: &[u8], limits: &Limits) -> Result<Scan<'_>, PickleError> {
        let mut opcodes = Opcodes::new(pickle);
        loop {
            let op = opcodes.read()?;
            if let Effect::Stop = op.effect {
                return self.finish(&op, pickle.len());
            }
            self.apply(&op, limits)?;
        }
    }

    fn apply(&mut self, op: &Op<'_>, limits: &Limits) -> Result<(), PickleError> {
        if op.protocol > self.newest {
            self.raise_protocol(op)?;
        }
        if matches!(op.effect, Effect::Fetch) || op.opcode == Opcode::Frame || op.protocol == 5 {
            self.remarkable = op.end;
        }
        match op.effect {
            Effect::Nothing => self.start(op),
            Effect::Constant | Effect::Container => {
                let kind = self.pushed(op);
                self.push(kind, op);
                Ok(())
            }
            Effect::Build(count) => {
                let from = self.below(op, count.into())?;
                self.build(op, from);
                Ok(())
            }
            Effect::BuildFromMark => {
                let from = self.mark(op)?.height;
                self.build(op, from);
                Ok(())
            }
            Effect::Change(count) => {
                let from = self.below(op, count.into())?;
                self.change(op, from)
            }
            Effect::ChangeFromMark => {
                let from = self.mark(op)?.height;
                self.change(op, from)
            }
            Effect::Mark => self.open_mark(op, limits),
            Effect::Pop => self.pop(op),
            Effect::PopMark => {
                let height = self.mark(op)?.height;
                self.stack.truncate(height);
                self.stack.marks.pop();
                Ok(())
            }
            Effect::Dup => {
                self.below(op, 1)?;
                if let Some(source) = self.stack.top() {
                    source.copied = op.end;
                }
                self.push(Kind::Other, op);
                Ok(())
            }
            Effect::Store => {
                self.below(op, 1)?;
                self.memo.store(op, limits)?;
                let now = self.progress(op);
                if let Some(top) = self.stack.top() {
                    top.end = now;
                }
                Ok(())
            }
            Effect::Fetch => {
                let index = self.memo.fetch(op)?;
                if !self.memo.contains(index) {
                    return Err(op.malformed("GET of a memo entry that was never stored"));
                }
                self.push(Kind::Fetched(op.start), op);
                Ok(())
            }
            Effect::Stop => Err(op.malformed("STOP inside the pickle")),
            Effect::Outside => Err(op.malformed("reference to something outside of the pickle")),
        }
    }

    /// Takes note of an opcode newer than all before it.
    fn raise_protocol(&mut self, op: &Op<'_>) -> Result<(), PickleError> {
        if op.protocol > newest_allowed(self.declared) {
            return Err(op.malformed("opcode newer than the pickle's protocol"));
        }
        self.newest = op.protocol;
        Ok(())
    }

    /// PROTO, and a FRAME behind it that most picklers write, belong to no value.
    fn start(&mut self, op: &Op<'_>) -> Result<(), PickleError> {
        if op.opcode != Opcode::Proto {
            if op.start == PROTO_LEN && self.stack.bottom.offset == PROTO_LEN {
                (self.stack.bottom.offset, self.remarkable) = (op.end, 0);
            }
            return Ok(());
        }
        if op.start != 0 {
            return Err(op.malformed("PROTO inside the pickle"));
        }
        self.declared = op.argument.first().copied().unwrap_or_default();
        if self.declared > PROTOCOL_MAX {
            return Err(op.malformed("unsupported pickle protocol"));
        }
        self.newest = 0;
        self.stack.bottom.offset = op.end;
        Ok(())
    }

    #[inline]
    fn push(&mut self, kind: Kind, op: &Op<'_>) {
        let (end, remarkable) = (self.progress(op), self.remarkable);
        self.stack.push(Slot { end, value_end: op.end, remarkable, copied: 0, kind });
    }

    fn progress(&self, op: &Op<'_>) -> Progress {
        Progress { offset: op.end, stored: self.memo.stored }
    }

    /// The kind of the value that `op` pushes.
    fn pushed(&mut self, op: &Op<'_>) -> Kind {
        match (op.opcode, (self.stack.height, self.stack.marks.len())) {
            (Opcode::EmptyTuple, ARGS) => {
                self.args.clear();
                Kind::Tuple
            }
            (Opcode::EmptyDict, KWARGS) => {
                self.kwargs.clear();
                Kind::Dict
            }
            _ if matches!(op.effect, Effect::Constant) => Kind::Constant(op.start),
            _ => Kind::Other,
        }
    }

    /// Puts one value in the place of those from height `from` up.
    fn build(&mut self, op: &Op<'_>, from: usize) {
        let kind = self.built(op, from);
        if op.effect == Effect::BuildFromMark {
            self.stack.marks.pop();
        }
        self.stack.truncate(from);
        self.push(kind, op);
    }

    /// The kind of the value that `op` builds from those from height `from` up.
    fn built(&mut self, op: &Op<'_>, from: usize) -> Kind {
        match (op.opcode, (from, self.marks_after(op))) {
            (Opcode::Tuple | Opcode::Tuple2, REQUEST) => {
                self.parts.clear();
                self.parts.extend(&self.stack, from, PARTS_MAX);
                Kind::Tuple
            }
            (Opcode::Tuple | Opcode::Tuple1 | Opcode::Tuple2 | Opcode::Tuple3, ARGS) => {
                self.args.clear();
                self.args.extend(&self.stack, from, ARGUMENTS_MAX);
                Kind::Tuple
            }
            (Opcode::Dict, KWARGS) => {
                self.kwargs.clear();
                self.kwargs.extend(&self.stack, from, 2 * ARGUMENTS_MAX);
                Kind::Dict
            }
            _ => Kind::Other,
        }
    }

    /// Puts the values from height `from` up into the one below them.
    fn change(&mut self, op: &Op<'_>, from: usize) -> Result<(), PickleError> {
        let keywords = matches!(op.opcode, Opcode::SetItem | Opcode::SetItems)
            && (from, self.marks_after(op)) == (KWARGS.0 + 1, KWARGS.1);
        if keywords {
            self.kwargs.extend(&self.stack, from, 2 * ARGUMENTS_MAX);
        }
        if op.effect == Effect::ChangeFromMark {
            self.stack.marks.pop();
        }
        self.stack.truncate(from);
        self.below(op, 1)?;
        let (end, remarkable) = (self.progress(op), self.remarkable);
        if let Some(target) = self.stack.top() {
            target.end = end;
            target.value_end = op.end;
            target.remarkable = remarkable;
            if !keywords || target.kind != Kind::Dict {
                target.kind = Kind::Other;
            }
        }
        Ok(())
    }

    /// How many marks will be open when `op` is done.
    fn marks_after(&self, op: &Op<'_>) -> usize {
        let from_mark = matches!(op.effect, Effect::BuildFromMark | Effect::ChangeFromMark);
        self.stack.marks.len() - usize::from(from_mark)
    }

    fn open_mark(&mut self, op: &Op<'_>, limits: &Limits) -> Result<(), PickleError> {
        let limit = limits.marks_max;
        if self.stack.marks.len() >= limit {
            return Err(PickleError::TooLarge { what: "open marks", limit });
        }
        let end = self.progress(op);
        self.stack.marks.push(Mark { height: self.stack.height, end });
        Ok(())
    }

    fn pop(&mut self, op: &Op<'_>) -> Result<(), PickleError> {
        if self.stack.marks.last().is_some_and(|mark| mark.height == self.stack.height) {
            self.stack.marks.pop();
            return Ok(());
        }
        let height = self.below(op, 1)?;
        self.stack.truncate(height);
        Ok(())
    }

    /// The height below the top `count` values.
    fn below(&self, op: &Op<'_>, count: usize) -> Result<usize, PickleError> {
        self.stack.without(count).ok_or_else(|| op.malformed("stack underflow"))
    }

    fn mark(&self, op: &Op<'_>) -> Result<Mark, PickleError> {
        self.stack.marks.last().copied().ok_or_else(|| op.malformed("no mark on the stack"))
    }

    fn finish(&self, stop: &Op<'_>, len: usize) -> Result<Scan<'_>, PickleError> {
        if stop.end != len {
            return Err(stop.malformed("bytes after STOP"));
        }
        if self.stack.height != 1 || !self.stack.marks.is_empty() {
            return Err(stop.malformed("not exactly one value at STOP"));
        }
        let root = self.stack.region(0).ok_or_else(|| stop.malformed("no value at STOP"))?;
        let required = match self.declared {
            0..=2 => self.declared.max(self.newest),
            3 => 3,
            _ => 4,
        };
        let header = Header {
            declared: self.declared,
            required,
            style: self.memo.style,
            body: self.stack.bottom.offset,
        };
        let parts = match root.kind {
            Kind::Tuple => self.parts.items().unwrap_or_default(),
            _ => &[],
        };
        Ok(Scan { header, root, parts, args: &self.args, kwargs: &self.kwargs })
    }
}

/// The newest protocol of the opcodes in a pickle that says it is of `declared`.
pub(super) fn newest_allowed(declared: u8) -> u8 {
    match declared {
        // A pickle without PROTO may well have opcodes of protocol 2, and names of Python 2.
        0..=2 => 2,
        3 => 3,
        _ => PROTOCOL_MAX,
    }
}

/// Scans other opcodes in the place of the arguments of a request: those in `range`, where the request
/// had `first` and what followed it. `None` unless they make `count` values and need nothing else:
/// neither what is below them nor what was stored before.
pub(super) fn arguments(
    pickle: &[u8],
    range: Range<usize>,
    (header, first, count): (&Header, &Region, usize),
    limits: &Limits,
) -> Option<SmallVec<[Region; 2]>> {
    if count == 1
        && let Some(region) = constant(pickle, range.clone(), header, first)
    {
        return Some(smallvec![region]);
    }
    let bottom = Progress { offset: range.start, stored: first.stored };
    let mut scanner = Scanner {
        stack: Stack { bottom, ..Stack::default() },
        memo: Memo::behind(first.stored),
        declared: header.declared,
        ..Scanner::default()
    };
    scanner.memo.style = header.style;
    let mut opcodes = Opcodes::between(pickle, range.start, range.end);
    while opcodes.len() > 0 {
        scanner.apply(&opcodes.read().ok()?, limits).ok()?;
    }
    let Scanner { stack, remarkable, .. } = &scanner;
    if stack.height != count || !stack.marks.is_empty() || *remarkable > 0 {
        return None;
    }
    let placed = |region: Region| Region { below: region.below + first.below, ..region };
    let regions: SmallVec<[Region; 2]> = stack.regions(0).map(placed).collect();
    let is_like_any = |region: &Region| match region.kind {
        Kind::Constant(at) => pickle.get(at) != Some(&EMPTY_TUPLE),
        _ => true,
    };
    let is_whole = regions.len() == count && regions.last()?.end == range.end;
    let are_like_any = regions.iter().all(|region| !region.leans && is_like_any(region));
    (is_whole && are_like_any).then_some(regions)
}

/// No constant to us where the arguments themselves might be one.
const EMPTY_TUPLE: u8 = Opcode::EmptyTuple as u8;

/// The same for the simplest argument, and the one of most requests: one opcode that spells it.
fn constant(pickle: &[u8], range: Range<usize>, header: &Header, first: &Region) -> Option<Region> {
    let op = Opcodes::between(pickle, range.start, range.end).next()?.ok()?;
    let is_alone = op.end == range.end && op.effect == Effect::Constant;
    let is_plain = op.opcode as u8 != EMPTY_TUPLE && op.protocol < PROTOCOL_MAX;
    (is_alone && is_plain && op.protocol <= newest_allowed(header.declared)).then_some(Region {
        start: op.start,
        end: op.end,
        kind: Kind::Constant(op.start),
        remarkable: false,
        leans: false,
        ..*first
    })
}

#[cfg(test)]
mod tests {
    use super::super::regions::TRACKED_MAX;
    use super::*;

    fn refusal(pickle: &[u8]) -> PickleError {
        Scanner::default().scan(pickle, &Limits::default()).unwrap_err()
    }

    #[test]
    fn what_no_unpickler_loads_is_refused() {
        let cases: [(&[u8], &str); 22] = [
            (b"NN.", "not exactly one value at STOP"),
            (b"(N.", "not exactly one value at STOP"),
            (b".", "not exactly one value at STOP"),
            (b"N.N", "bytes after STOP"),
            (b"N\x80\x02.", "PROTO inside the pickle"),
            (b"\x80\x06N.", "unsupported pickle protocol"),
            (b"0", "stack underflow"),
            (b"2", "stack underflow"),
            (b"N(2", "stack underflow"),
            (b"N(R", "stack underflow"),
            (b"NR", "stack underflow"),
            (b"Na", "stack underflow"),
            (b"(Ne", "stack underflow"),
            (b"q\x01", "stack underflow"),
            (b"Nt", "no mark on the stack"),
            (b"N1", "no mark on the stack"),
            (b"h\x01", "GET of a memo entry that was never stored"),
            (b"\x80\x04N\x94h\x01", "GET of a memo entry that was never stored"),
            (b"\x80\x04N\x94q\x01", "two ways of numbering the memo"),
            (b"Nq\x01g1\n", "two ways of numbering the memo"),
            (b"N\x8c\x01a\x86.", "opcode newer than the pickle's protocol"),
            (b"\x80\x03N\x94.", "opcode newer than the pickle's protocol"),
        ];
        for (pickle, what) in cases {
            match refusal(pickle) {
                PickleError::Malformed { what: found, .. } => assert_eq!(found, what, "{pickle:?}"),
                other => panic!("{pickle:?}: {other}"),
            }
        }
    }

    #[test]
    fn references_out_of_the_pickle_are_refused() {
        for pickle in [&b"Pid\n."[..], b"NQ.", b"\x80\x05\x97."] {
            let what = "reference to something outside of the pickle";
            assert!(matches!(refusal(pickle), PickleError::Malformed { what: w, .. } if w == what));
        }
    }

    #[test]
    fn a_pickle_without_stop_is_truncated() {
        assert_eq!(refusal(b"N"), PickleError::Truncated { offset: 1 });
        assert_eq!(refusal(b"\x80"), PickleError::Truncated { offset: 1 });
    }

    #[test]
    fn open_marks_and_memo_entries_are_bounded() {
        let limits = Limits { marks_max: 3, memo_max: 3, ..Limits::default() };
        let refusal = |pickle| Scanner::default().scan(pickle, &limits).unwrap_err();
        assert_eq!(refusal(b"(((("), PickleError::TooLarge { what: "open marks", limit: 3 });
        let entries = PickleError::TooLarge { what: "memo entries", limit: 3 };
        assert_eq!(refusal(b"\x80\x04N\x94\x94\x94\x94"), entries);
        assert_eq!(refusal(b"\x80\x02Nr\0\0\0\x80"), entries);
    }

    #[test]
    fn scattered_memo_entries_are_bounded() {
        let mut pickle = b"N".to_vec();
        for index in 0..=(1u32 << 16) + 1 {
            pickle.push(b'r');
            pickle.extend((2 * index).to_le_bytes());
        }
        let limit = Memo::SCATTERED_MAX;
        let what = "scattered memo entries";
        assert_eq!(refusal(&pickle), PickleError::TooLarge { what, limit });
    }

    #[test]
    fn a_stack_of_any_height_takes_no_memory() {
        let mut scanner = Scanner::default();
        for op in Opcodes::new(&[&b"N"[..], &[b'2'; 1 << 20]].concat()) {
            scanner.apply(&op.unwrap(), &Limits::default()).unwrap();
        }
        assert_eq!(scanner.stack.height, (1 << 20) + 1);
        assert_eq!(scanner.stack.slots.len(), TRACKED_MAX);
    }

    #[test]
    fn values_beyond_the_tracked_ones_come_and_go() {
        let pickle = [&b"(("[..], &[b'N'; 300], &[b'0'; 299], b"K\x01\x86tN0t."].concat();
        let mut scanner = Scanner::default();
        let scan = scanner.scan(&pickle, &Limits::default()).unwrap();
        assert_eq!((scan.root.start, scan.root.end), (0, pickle.len() - 1));
    }

    mod mutations {
        use bytes::{Bytes, BytesMut};
        use proptest::prelude::*;

        use super::super::super::{Call, Payload};
        use super::*;

        const REQUESTS: [&[u8]; 4] = [
            b"\x80\x04\x95\x1f\0\0\0\0\0\0\0(\x8c\x0c7fcf056506a0\x94\x8c\x03put\x94(h\x01]\x94(h\
              \x02K\x01eNt\x94}\x94(\x8c\x05block\x94\x88\x8c\x07timeout\x94h\x06ut\x94.",
            b"\x80\x02(U\x02q1q\x01U\x03putq\x02}q\x03(U\x01aK\x01U\x01bh\x02u]q\x04h\x03a\x86q\
              \x05}q\x06U\x04itemh\x04st.",
            b"(S'q1'\np0\nVput\np1\n((lp2\nI1\nag1\nF1.5\nL5L\ntp3\n(dp4\nVblock\np5\nI01\nst.",
            b"\x80\x05(N\x8c\x01m\x94\x96\x02\0\0\0\0\0\0\0ab\x94c__main__\nPlain\n\x94)\x81\x94}\
              \x94\x8c\x01x\x94h\x01sb\x8f\x94(K\x012K\x02\x90\x87\x94}t.",
        ];

        /// Reads all that there is to read; whatever comes out must again be whole.
        fn exercise(bytes: &[u8]) {
            let limits = Limits { expansion_max: 1 << 12, ..Limits::default() };
            if let Ok(taken) = Payload::from_standalone(Bytes::copy_from_slice(bytes), &limits) {
                std::hint::black_box(taken.proxies());
            }
            let Ok(call) = Call::parse(Bytes::copy_from_slice(bytes), &limits) else { return };
            let keywords = call.kwargs().map(|(_, argument)| argument);
            for argument in call.args().iter().copied().chain(keywords) {
                std::hint::black_box(call.atom(&argument));
                let Ok(payload) = call.payload(&argument, &limits) else { continue };
                let mut reply = BytesMut::new();
                payload.write_reply(&mut reply);
                for pickle in [reply.freeze(), payload.standalone()] {
                    assert!(Payload::from_standalone(pickle, &limits).is_ok());
                }
            }
        }

        #[test]
        fn the_requests_to_mutate_are_whole() {
            for request in REQUESTS {
                exercise(request);
                Call::parse(Bytes::from_static(request), &Limits::default()).unwrap();
            }
        }

        proptest! {
            #[test]
            fn a_damaged_request_is_read_or_refused(
                which in 0..REQUESTS.len(),
                changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
                len in any::<prop::sample::Index>(),
            ) {
                let mut bytes = REQUESTS[which].to_vec();
                for (at, byte) in changes {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
                exercise(&bytes);
                bytes.truncate(len.index(bytes.len()));
                exercise(&bytes);
            }

            #[test]
            fn opcodes_at_random_are_read_or_refused(
                opcodes in prop::collection::vec(prop::sample::select(&b"(NK012)]}taesu\x85\x86\x94hqqh"[..]), 0..60),
            ) {
                exercise(&opcodes);
                exercise(&[&b"\x80\x04(N\x8c\x01m"[..], &opcodes, b"\x85}t."].concat());
                exercise(&[&b"\x80\x04(N\x8c\x01mN\x94]\x94"[..], &opcodes, b"\x87}t."].concat());
            }
        }
    }
}
