//! What of an object Python's `<` can look at without running code of the object's own.
//!
//! One pass over an object's opcodes finds where the elements of its tuple or list stand; elements
//! that are tuples and lists themselves are looked into the same way, and of all others only
//! numbers, texts and bytes are decoded. The rest is never built, whatever it is.
//!
//! Invariant: the work is bounded by the length of the object, however often its memo is read: the
//! first pass sees each byte once, and all that comes after draws on [`Outliner::bytes_left`].

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::opcode::{Effect, Op, Opcode, Opcodes};
use super::{Limits, Payload, Value};

/// Elements of one tuple or list that are looked at.
const ITEMS_MAX: usize = 256;
/// Tuples and lists inside each other that are looked into.
const DEPTH_MAX: usize = 32;
/// Memo entries whose values are known when they are read again.
const SHARED_MAX: usize = 1 << 16;
/// Opcodes at the start of an instance among which its class is looked for.
const CLASS_OPCODES_MAX: usize = 64;
/// Longest name of a class that is shown, in bytes.
const CLASS_LEN_MAX: usize = 255;
/// Values of which bytes consist that are written as a call.
const BYTES_VALUES_MAX: usize = 8;

/// An object as far as it can be compared.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Outline<'p> {
    /// A number, a text or bytes.
    Atom(Value),
    /// A list. What is beyond its first 256 elements is one opaque element behind them.
    List(Vec<Self>),
    /// A tuple; the same holds for its elements.
    Tuple(Vec<Self>),
    /// Anything else, and what is too deep, too large or refers to itself.
    Opaque {
        /// Python's name of its type, as far as it is plain to see; `object` otherwise.
        kind: Cow<'p, str>,
        /// Opcodes that tell it: objects with the same ones are equal. Those that are equal
        /// may have different ones.
        opcodes: &'p [u8],
    },
}

impl Payload {
    /// Finds out what of the object can be compared, without building the rest.
    ///
    /// Takes time proportional to the length of the payload, and never fails: what cannot be read
    /// is opaque.
    #[must_use]
    pub fn outline(&self, limits: &Limits) -> Outline<'_> {
        let mut shared = BTreeMap::new();
        let bytes_left = self.bytes.len().saturating_add(limits.expansion_max);
        let whole = Opcodes::new(&self.bytes);
        let Some((root, items)) = Pass::new(limits).run(whole, Some(&mut shared)) else {
            return Outline::Opaque { kind: "object".into(), opcodes: &self.bytes };
        };
        let mut outliner = Outliner { pickle: &self.bytes, limits, shared, bytes_left };
        if root.is_sequence() {
            outliner.sequence(&root, &items, 0)
        } else {
            outliner.outline(&root, 0)
        }
    }
}

/// The opcodes that made one value.
#[derive(Debug, Clone, Copy)]
struct Part {
    /// Offset of the first.
    start: usize,
    /// Offset behind the last.
    end: usize,
    /// The one that pushed it.
    maker: Opcode,
    /// Whether it reads what was made before it.
    reads: bool,
}

impl Part {
    fn len(&self) -> usize {
        self.end.saturating_sub(self.start)
    }

    /// Whether it is a number, a text or bytes.
    fn is_plain(&self) -> bool {
        let kind = kind_of_maker(self.maker);
        matches!(kind, "bool" | "int" | "float" | "str" | "bytes" | "bytearray")
    }

    fn is_list(&self) -> bool {
        matches!(self.maker, Opcode::EmptyList | Opcode::List)
    }

    fn is_tuple(&self) -> bool {
        matches!(
            self.maker,
            Opcode::EmptyTuple | Opcode::Tuple | Opcode::Tuple1 | Opcode::Tuple2 | Opcode::Tuple3
        )
    }

    fn is_sequence(&self) -> bool {
        self.is_list() || self.is_tuple()
    }
}

/// The elements of the value at the bottom of the stack.
#[derive(Debug, Default)]
struct Items {
    /// The first [`ITEMS_MAX`].
    parts: Vec<Part>,
    /// How many there are.
    count: usize,
}

impl Items {
    fn clear(&mut self) {
        self.parts.clear();
        self.count = 0;
    }

    fn extend(&mut self, parts: &[Part], count: usize) {
        let room = ITEMS_MAX - self.parts.len();
        self.parts.extend(parts.iter().take(room));
        self.count += count;
    }
}

#[derive(Debug)]
struct Mark {
    height: usize,
    start: usize,
}

/// A walk over the opcodes of one value, remembering where those near the bottom stand.
#[derive(Debug)]
struct Pass {
    marks_max: usize,
    height: usize,
    /// The lowest values, as many as are looked at and the list that they go into.
    parts: Vec<Part>,
    /// The top value, if one opcode spells it and it is above those.
    above: Option<Part>,
    marks: Vec<Mark>,
    items: Items,
    /// Where the last opcode stands that copied a value.
    last_read: Option<usize>,
    stored: usize,
}

/// Memo entries that are constants or tuples, which nothing changes any more.
type Shared = BTreeMap<usize, Part>;

impl Pass {
    fn new(limits: &Limits) -> Self {
        Self {
            marks_max: limits.marks_max,
            height: 0,
            parts: Vec::new(),
            above: None,
            marks: Vec::new(),
            items: Items::default(),
            last_read: None,
            stored: 0,
        }
    }

    /// The one value that the opcodes leave, and its elements if it is a tuple or list.
    fn run(
        mut self,
        opcodes: Opcodes<'_>,
        mut shared: Option<&mut Shared>,
    ) -> Option<(Part, Items)> {
        for op in opcodes {
            self.apply(&op.ok()?, shared.as_deref_mut())?;
        }
        let is_whole = self.height == 1 && self.marks.is_empty();
        Some((*self.parts.first().filter(|_| is_whole)?, self.items))
    }

    /// `None`: the opcodes are no value.
    fn apply(&mut self, op: &Op<'_>, shared: Option<&mut Shared>) -> Option<()> {
        match op.effect {
            Effect::Nothing => {}
            Effect::Constant | Effect::Container => self.push(op.start, op),
            Effect::Fetch | Effect::Dup => {
                self.last_read = Some(op.start);
                self.push(op.start, op);
            }
            Effect::Build(count) => {
                let from = self.height.checked_sub(count.into())?;
                let start = self.parts.get(from).map_or(op.start, |part| part.start);
                self.build(from, start, op);
            }
            Effect::BuildFromMark => {
                let Mark { height, start } = self.marks.pop()?;
                self.build(height, start, op);
            }
            Effect::Change(count) => self.change(self.height.checked_sub(count.into())?, op)?,
            Effect::ChangeFromMark => {
                let from = self.marks.pop()?.height;
                self.change(from, op)?;
            }
            Effect::Mark => {
                let mark = Mark { height: self.height, start: op.start };
                self.marks.push(mark);
                return (self.marks.len() <= self.marks_max).then_some(());
            }
            Effect::Pop if self.marks.last().is_some_and(|mark| mark.height == self.height) => {
                self.marks.pop();
            }
            Effect::Pop => self.truncate(self.height.checked_sub(1)?),
            Effect::PopMark => {
                let height = self.marks.pop()?.height;
                self.truncate(height);
            }
            Effect::Store => {
                if let Some(shared) = shared {
                    self.store(op, shared)?;
                }
                self.stored += 1;
            }
            Effect::Stop | Effect::Outside => return None,
        }
        Some(())
    }

    fn push(&mut self, start: usize, op: &Op<'_>) {
        let reads = self.last_read.is_some_and(|last| last >= start);
        let part = Part { start, end: op.end, maker: op.opcode, reads };
        self.above = None;
        if self.height == 0 {
            self.items.clear();
        }
        if self.height <= ITEMS_MAX {
            self.parts.push(part);
        } else if op.effect == Effect::Constant {
            self.above = Some(part);
        }
        self.height += 1;
    }

    fn truncate(&mut self, height: usize) {
        self.height = height;
        self.parts.truncate(height);
        self.above = None;
    }

    /// Puts one value in the place of those from height `from` up.
    fn build(&mut self, from: usize, start: usize, op: &Op<'_>) {
        let count = self.height.saturating_sub(from);
        let parts = self.parts.split_off(from.min(self.parts.len()));
        self.truncate(from);
        self.push(start, op);
        if from == 0 {
            self.items.extend(&parts, count);
        }
    }

    /// Puts the values from height `from` up into the one below them.
    fn change(&mut self, from: usize, op: &Op<'_>) -> Option<()> {
        let target = from.checked_sub(1)?;
        if target == 0 && self.parts.first().is_some_and(Part::is_list) {
            self.items.extend(self.parts.get(from..)?, self.height.saturating_sub(from));
        }
        self.truncate(from);
        if let Some(part) = self.parts.get_mut(target) {
            part.end = op.end;
            part.reads = self.last_read.is_some_and(|last| last >= part.start);
        }
        Some(())
    }

    fn store(&self, op: &Op<'_>, shared: &mut Shared) -> Option<()> {
        let index = op.memo_index(self.stored).ok()?;
        let is_top = self.parts.len() == self.height;
        let top = if is_top { self.parts.last().copied() } else { self.above };
        match top.filter(|part| part.is_tuple() || part.is_plain()) {
            Some(part) if shared.len() < SHARED_MAX || shared.contains_key(&index) => {
                shared.insert(index, part);
            }
            _ => {
                shared.remove(&index);
            }
        }
        Some(())
    }
}

/// Python's name for the type of what an opcode pushes.
fn kind_of_maker(maker: Opcode) -> &'static str {
    match maker {
        Opcode::None => "NoneType",
        Opcode::NewTrue | Opcode::NewFalse => "bool",
        Opcode::Int
        | Opcode::BinInt
        | Opcode::BinInt1
        | Opcode::BinInt2
        | Opcode::Long
        | Opcode::Long1
        | Opcode::Long4 => "int",
        Opcode::Float | Opcode::BinFloat => "float",
        Opcode::Unicode
        | Opcode::BinUnicode
        | Opcode::ShortBinUnicode
        | Opcode::BinUnicode8
        | Opcode::String
        | Opcode::BinString
        | Opcode::ShortBinString => "str",
        Opcode::BinBytes | Opcode::ShortBinBytes | Opcode::BinBytes8 => "bytes",
        Opcode::ByteArray8 => "bytearray",
        Opcode::EmptyTuple | Opcode::Tuple | Opcode::Tuple1 | Opcode::Tuple2 | Opcode::Tuple3 => {
            "tuple"
        }
        Opcode::EmptyList | Opcode::List => "list",
        Opcode::EmptyDict | Opcode::Dict => "dict",
        Opcode::EmptySet => "set",
        Opcode::FrozenSet => "frozenset",
        Opcode::Global | Opcode::StackGlobal | Opcode::Ext1 | Opcode::Ext2 | Opcode::Ext4 => "type",
        _ => "object",
    }
}

/// Turns parts into what can be compared.
#[derive(Debug)]
struct Outliner<'p, 'l> {
    pickle: &'p [u8],
    limits: &'l Limits,
    shared: Shared,
    /// Bytes that may still be walked, copied or shown again.
    bytes_left: usize,
}

impl<'p> Outliner<'p, '_> {
    fn outline(&mut self, part: &Part, depth: usize) -> Outline<'p> {
        match part.maker {
            Opcode::Get | Opcode::BinGet | Opcode::LongBinGet => self.fetched(part, depth),
            Opcode::Reduce if !part.reads => self.atom(part, BYTES_VALUES_MAX),
            _ if part.is_sequence() => {
                let Self { pickle, limits, .. } = *self;
                let opcodes = Opcodes::between(pickle, part.start, part.end);
                if depth >= DEPTH_MAX || !self.spend(part.len()) {
                    return self.opaque(part);
                }
                match Pass::new(limits).run(opcodes, None) {
                    Some((_, items)) => self.sequence(part, &items, depth),
                    None => self.opaque(part),
                }
            }
            _ if part.is_plain() => self.atom(part, 1),
            _ => self.opaque(part),
        }
    }

    fn sequence(&mut self, part: &Part, items: &Items, depth: usize) -> Outline<'p> {
        let mut outlines: Vec<_> =
            items.parts.iter().map(|item| self.outline(item, depth + 1)).collect();
        if items.count > outlines.len() {
            outlines.push(self.opaque(part));
        }
        if part.is_list() { Outline::List(outlines) } else { Outline::Tuple(outlines) }
    }

    fn fetched(&mut self, part: &Part, depth: usize) -> Outline<'p> {
        let op = Opcodes::between(self.pickle, part.start, part.end).next();
        let index = op.and_then(Result::ok).and_then(|op| op.memo_index(0).ok());
        match index.and_then(|index| self.shared.get(&index).copied()) {
            Some(shared) if depth < DEPTH_MAX && shared.len() <= self.bytes_left => {
                self.outline(&shared, depth + 1)
            }
            _ => self.opaque(part),
        }
    }

    fn atom(&mut self, part: &Part, values_max: usize) -> Outline<'p> {
        if !self.spend(part.len()) {
            return self.opaque(part);
        }
        // Latin-1 may become twice as long.
        let limits = Limits { values_max, expansion_max: part.len(), ..*self.limits };
        match Value::of_opcodes(Opcodes::between(self.pickle, part.start, part.end), &limits) {
            Ok(Value::None | Value::Object(_) | Value::Set(_) | Value::FrozenSet(_)) | Err(_) => {
                self.opaque(part)
            }
            Ok(value) => Outline::Atom(value),
        }
    }

    fn opaque(&mut self, part: &Part) -> Outline<'p> {
        // What reads the memo means the same only behind the same opcodes.
        let start = if part.reads && self.spend(part.end) { 0 } else { part.start };
        let opcodes = self.pickle.get(start..part.end).unwrap_or_default();
        Outline::Opaque { kind: self.kind(part), opcodes }
    }

    fn kind(&self, part: &Part) -> Cow<'p, str> {
        match part.maker {
            Opcode::Reduce | Opcode::NewObj | Opcode::NewObjEx | Opcode::Inst | Opcode::Obj => {
                self.class(part).unwrap_or("object".into())
            }
            maker => kind_of_maker(maker).into(),
        }
    }

    /// The class of an instance: the first that is named, unless it only helps to make others.
    fn class(&self, part: &Part) -> Option<Cow<'p, str>> {
        let opcodes = Opcodes::between(self.pickle, part.start, part.end);
        let mut texts = [&b""[..]; 2];
        for op in opcodes.take(CLASS_OPCODES_MAX) {
            let op = op.ok()?;
            let [module, name] = match op.opcode {
                Opcode::Global | Opcode::Inst => <[_; 2]>::from(op.lines()),
                Opcode::StackGlobal => texts,
                Opcode::ShortBinUnicode | Opcode::BinUnicode => {
                    texts = [texts[1], op.argument];
                    continue;
                }
                _ => continue,
            };
            if !matches!(module, b"copyreg" | b"copy_reg") {
                let name = std::str::from_utf8(name).ok()?.rsplit('.').next()?;
                return (1..=CLASS_LEN_MAX).contains(&name.len()).then_some(name.into());
            }
        }
        None
    }

    fn spend(&mut self, len: usize) -> bool {
        let left = self.bytes_left.checked_sub(len);
        self.bytes_left = left.unwrap_or(self.bytes_left);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn payload(bytes: &[u8]) -> Payload {
        Payload::pickle(4, Bytes::copy_from_slice(bytes))
    }

    fn check(object: &[u8], expected: &Outline<'_>) {
        let payload = payload(object);
        let found = payload.outline(&Limits::default());
        assert_eq!(found, *expected, "{}", object.escape_ascii());
    }

    fn int(number: i64) -> Outline<'static> {
        Outline::Atom(Value::Int(number))
    }

    fn text(text: &str) -> Outline<'static> {
        Outline::Atom(Value::Str(text.to_owned()))
    }

    fn opaque(kind: &'static str, opcodes: &'static [u8]) -> Outline<'static> {
        Outline::Opaque { kind: kind.into(), opcodes }
    }

    #[test]
    fn tuples_and_lists_of_every_spelling_are_looked_into() {
        let one_two = Outline::Tuple(vec![int(1), int(2)]);
        check(b"K\x01K\x02\x86\x94", &one_two);
        check(b"\x95\0\0\0\0\0\0\0\0(K\x01K\x02t", &one_two);
        check(b"(I1\nL2L\ntp0\n", &one_two);
        let list = Outline::List(vec![int(1), int(2)]);
        check(b"]\x94(K\x01K\x02e", &list);
        check(b"]K\x01aK\x02a", &list);
        check(b"(lp0\nI1\naI2\na", &list);
        check(b"(K\x01K\x02l", &list);
        check(b")", &Outline::Tuple(vec![]));
        check(b"]", &Outline::List(vec![]));
        check(b"K\x07]\x94(K\x01K\x02e)\x87", &{
            Outline::Tuple(vec![int(7), list.clone(), Outline::Tuple(vec![])])
        });
        check(b"((K\x01K\x02tt", &Outline::Tuple(vec![one_two]));
        check(b"K\x01(K\x05]K\x06t0", &int(1));
    }

    #[test]
    fn what_python_cannot_compare_is_known_by_its_opcodes() {
        check(b"K\x01}X\x01\0\0\0aNs\x86", &{
            Outline::Tuple(vec![int(1), opaque("dict", b"}X\x01\0\0\0aNs")])
        });
        check(b"N", &opaque("NoneType", b"N"));
        check(b"\x8f(K\x01\x90", &opaque("set", b"\x8f(K\x01\x90"));
        check(b"(K\x01\x91", &opaque("frozenset", b"(K\x01\x91"));
        check(b"cm\nC\n", &opaque("type", b"cm\nC\n"));
        check(b"cm\nOuter.Job\n)R}b", &opaque("Job", b"cm\nOuter.Job\n)R}b"));
        check(b"\x8c\x01m\x94\x8c\x03Job\x94\x93)\x81", &{
            opaque("Job", b"\x8c\x01m\x94\x8c\x03Job\x94\x93)\x81")
        });
        check(b"ccopy_reg\n_reconstructor\n(cm\nJob\nc__builtin__\nobject\nNtR", &{
            opaque("Job", b"ccopy_reg\n_reconstructor\n(cm\nJob\nc__builtin__\nobject\nNtR")
        });
        check(b"K\x01X\x03\0\0\0\xed\xa0\xbd\x86", &{
            Outline::Tuple(vec![int(1), opaque("str", b"X\x03\0\0\0\xed\xa0\xbd")])
        });
    }

    #[test]
    fn bytes_that_are_written_as_calls_are_read() {
        let object = b"c_codecs\nencode\nX\x03\0\0\0a\xc3\xbfX\x06\0\0\0latin1\x86R";
        check(object, &Outline::Atom(Value::Bytes(vec![b'a', 0xff])));
        check(b"V\xe4\xe4\xe4\n", &text("äää"));
    }

    #[test]
    fn constants_and_tuples_that_are_read_again_are_looked_up() {
        let twice = |outline: Outline<'static>| Outline::Tuple(vec![outline.clone(), outline]);
        check(b"X\x01\0\0\0a\x94h\x00\x86", &twice(text("a")));
        check(b"K\x01\x85q\x05h\x05\x86", &twice(Outline::Tuple(vec![int(1)])));
        // What is shared may stand inside of something else, or in the prelude.
        check(b"}X\x01\0\0\0a\x94Ns0h\x00", &text("a"));
        check(b"N\x94X\x01\0\0\0a\x9400h\x01", &text("a"));
    }

    #[test]
    fn what_reads_the_memo_is_known_by_all_that_came_before() {
        check(b"]\x94K\x01ah\x00\x86", &{
            let list = Outline::List(vec![int(1)]);
            Outline::Tuple(vec![list, opaque("object", b"]\x94K\x01ah\x00")])
        });
        check(b"]\x94h\x00a", &{ Outline::List(vec![opaque("object", b"]\x94h\x00")]) });
    }

    #[test]
    fn what_is_beyond_the_first_elements_is_one_opaque_one() {
        let list = [&b"]("[..], &b"K\x05".repeat(200), b"e(", &b"K\x05".repeat(57), b"e"].concat();
        let tuple = [&b"("[..], &b"K\x05".repeat(257), b"t"].concat();
        for (object, kind) in [(list, "list"), (tuple, "tuple")] {
            let payload = payload(&object);
            let outline = payload.outline(&Limits::default());
            let (Outline::List(items) | Outline::Tuple(items)) = &outline else {
                panic!("{outline:?}")
            };
            assert_eq!(items.len(), ITEMS_MAX + 1);
            assert_eq!(items[255], int(5));
            assert_eq!(items[256], Outline::Opaque { kind: kind.into(), opcodes: &object });
        }
    }

    #[test]
    fn the_elements_in_front_are_seen_whatever_follows() {
        let bottomless = [&b"]".repeat(100_000)[..], &b"a".repeat(99_999)].concat();
        let huge = [&b"]("[..], &b"N".repeat(2 << 20), b"e"].concat();
        let memo = [&b"N"[..], &b"\x94".repeat(1 << 20)].concat();
        let high = [&b"("[..], &b"N".repeat(2 << 20), b"\x91"].concat();
        for hostile in [bottomless, huge, memo, high] {
            let payload = payload(&[b"K\x01K\x02", &hostile[..], b"\x87"].concat());
            let outline = payload.outline(&Limits::default());
            let Outline::Tuple(items) = outline else { panic!("{outline:?}") };
            assert_eq!(items[..2], [int(1), int(2)]);
            assert_eq!(items.len(), 3);
        }
    }

    /// Bytes that an outline shows or holds.
    fn weight(outline: &Outline<'_>) -> usize {
        match outline {
            Outline::Atom(Value::Str(text)) => text.len(),
            Outline::Atom(_) => 8,
            Outline::List(items) | Outline::Tuple(items) => items.iter().map(weight).sum(),
            Outline::Opaque { opcodes, .. } => opcodes.len(),
        }
    }

    #[test]
    fn what_is_read_again_and_again_does_not_multiply() {
        let long = [&b"X\0\0\x01\0"[..], &[b'x'; 1 << 16]].concat();
        let texts = [b"(", &long[..], b"\x94", &b"h\0".repeat(200), b"t"].concat();
        let mut doubling = b"K\x01\x85\x94".to_vec();
        for level in 0..40u8 {
            doubling.extend([b'h', level, b'h', level, 0x86, 0x94]);
        }
        doubling.extend(b"\x85");
        let doubling = [b"(", &doubling[..], b"t"].concat();
        let dicts = [b"(", &long[..], b"\x94", &b"}h\0Ns".repeat(200), b"t"].concat();
        let limits = Limits { expansion_max: 1 << 16, ..Limits::default() };
        for object in [texts, doubling, dicts] {
            let payload = payload(&object);
            let weight = weight(&payload.outline(&limits));
            assert!(weight <= 4 * (object.len() + limits.expansion_max), "{weight}");
        }
    }

    #[test]
    fn what_is_no_value_is_opaque() {
        for object in [&b""[..], b"(", b"NN", b"\x86", b"e", b"\xff", b"K", b"N.", b"Pid\n"] {
            let payload = payload(object);
            let expected = Outline::Opaque { kind: "object".into(), opcodes: object };
            assert_eq!(payload.outline(&Limits::default()), expected);
        }
    }

    proptest::proptest! {
        #[test]
        fn opcodes_at_random_have_an_outline(
            opcodes in proptest::collection::vec(
                proptest::sample::select(&b"(NK012)]}taesulbRo\x81\x85\x86\x87\x90\x91\x93\x94hqh"[..]),
                0..80,
            ),
        ) {
            let payload = payload(&opcodes);
            std::hint::black_box(payload.outline(&Limits::default()));
        }
    }
}
