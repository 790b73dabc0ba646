//! What a client asks again and again, known by its bytes.
//!
//! The requests of a session are mostly of a few kinds, and those of one kind differ in their
//! arguments alone. So what stands around the arguments is remembered; of a request that has the
//! same there, only the arguments are scanned. Invariant: what is recognized is what
//! [`Call::parse`] would find.

use std::ops::Range;

use bytes::Bytes;

use super::opcode::Opcode;
use super::{Call, Limits};

/// Kinds of requests that are remembered: a worker takes, settles, and puts.
const KINDS_MAX: usize = 4;
/// Arguments, by position or by name, of a request that is remembered.
const ARGUMENTS_MAX: usize = 4;
/// Most bytes around the arguments of a request that is remembered.
const AROUND_LEN_MAX: usize = 256;
/// PROTO and the opcode FRAME, in front of what changes with the length of the arguments.
const FRAMED_LEN: usize = 3;
/// The length that FRAME gives. No reader of ours needs it.
const FRAME_LEN: Range<usize> = FRAMED_LEN..FRAMED_LEN + 8;
const FRAME: u8 = Opcode::Frame as u8;

/// The kinds of requests that one session makes, each with what its user knows beside.
#[derive(Debug)]
pub struct RequestTemplates<T> {
    kinds: Vec<RequestTemplate<T>>,
    /// Whose place is taken next.
    oldest: usize,
}

#[derive(Debug)]
struct RequestTemplate<T> {
    head: Box<[u8]>,
    tail: Box<[u8]>,
    /// One of them, without its bytes.
    call: Call,
    beside: T,
}

impl<T> Default for RequestTemplates<T> {
    fn default() -> Self {
        Self { kinds: Vec::new(), oldest: 0 }
    }
}

impl<T> RequestTemplates<T> {
    /// The request in `frame`, and what was said of its kind when that was [learned](Self::learn).
    /// `None` if it has to be [parsed](Call::parse).
    pub fn recognize(&self, frame: &Bytes, limits: &Limits) -> Option<(Call, &T)> {
        self.kinds.iter().find_map(|template| {
            let call = template.call.again(frame, template.arguments(frame)?, limits)?;
            Some((call, &template.beside))
        })
    }

    /// What was said of a request without positional arguments when it was [learned](Self::learn),
    /// if `frame` is the same again.
    pub fn recall(&self, frame: &[u8]) -> Option<&T> {
        let is_same = |template: &&RequestTemplate<T>| {
            template.tail.is_empty()
                && template.head.len() == frame.len()
                && is_same_head(frame, &template.head)
        };
        self.kinds.iter().find(is_same).map(|template| &template.beside)
    }

    /// Takes note of a request, so that others of its kind are recognized.
    pub fn learn(&mut self, call: &Call, beside: T) {
        let Some((head, tail)) = call.around() else { return };
        let arguments = call.args().len() + call.kwargs().count();
        if head.len() + tail.len() > AROUND_LEN_MAX || arguments > ARGUMENTS_MAX {
            return;
        }
        let call = call.without_bytes();
        let template = RequestTemplate { head: head.into(), tail: tail.into(), call, beside };
        // One whose arguments are not recognized is learned again.
        if let Some(same) = self.kinds.iter_mut().find(|it| it.is_same(&template)) {
            *same = template;
            return;
        }
        if self.kinds.len() < KINDS_MAX {
            // Most sessions make requests of one or two kinds.
            self.kinds.reserve_exact(1);
            return self.kinds.push(template);
        }
        if let Some(place) = self.kinds.get_mut(self.oldest) {
            *place = template;
        }
        self.oldest = (self.oldest + 1) % KINDS_MAX;
    }
}

impl<T> RequestTemplate<T> {
    fn is_same(&self, other: &Self) -> bool {
        let is_as_long = self.head.len() == other.head.len();
        is_as_long && is_same_head(&self.head, &other.head) && self.tail == other.tail
    }

    /// Where the arguments of a request of this kind are; `None` if it is of another.
    fn arguments(&self, frame: &[u8]) -> Option<Range<usize>> {
        let end = frame.len().checked_sub(self.tail.len())?;
        let (before, tail) = frame.split_at_checked(end)?;
        let (head, _) = before.split_at_checked(self.head.len())?;
        (*tail == *self.tail && is_same_head(head, &self.head)).then_some(head.len()..end)
    }
}

/// Whether two beginnings are the same but for what FRAME says. Both are equally long.
fn is_same_head(one: &[u8], other: &[u8]) -> bool {
    let framed = |head: &[u8]| head.get(FRAMED_LEN - 1) == Some(&FRAME);
    match (one.get(FRAME_LEN.end..), other.get(FRAME_LEN.end..)) {
        (Some(rest), Some(other_rest)) if framed(one) => {
            one.get(..FRAMED_LEN) == other.get(..FRAMED_LEN) && rest == other_rest
        }
        _ => one == other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Payload;
    use super::*;

    fn limits() -> Limits {
        Limits { stack_max: 9, marks_max: 9, ..Limits::default() }
    }

    /// Requests of stock clients and of ours, around the opcodes of their arguments.
    const AROUND: [(&[u8], &[u8]); 7] = [
        (b"\x80\x04\x95\x10\0\0\0\0\0\0\0(\x8c\x02q1\x94\x8c\x03put\x94", b"\x85\x94}\x94t\x94."),
        (b"\x80\x04\x95\x10\0\0\0\0\0\0\0(\x8c\x02q1\x94\x8c\x03put\x94", b"\x86\x94}\x94t\x94."),
        (b"\x80\x02(U\x02q1q\x00U\x03putq\x01", b"\x85q\x05}q\x06tq\x07."),
        (b"\x80\x03(X\x02\0\0\0q1q\x00X\x03\0\0\0putq\x01", b"q\x02\x85q\x03}q\x04tq\x05."),
        (b"\x80\x03(U\x02q1U\x03put(", b"t}t."),
        (b"\x80\x05(U\x02q1U\x03put", b"}t."),
        (b"\x80\x02(U\x02q1U\x03put", b"\x85h\x020}t."),
    ];

    fn request(around: (&[u8], &[u8]), arguments: &[u8]) -> Bytes {
        let mut bytes = [around.0, arguments, around.1].concat();
        if bytes.get(2) == Some(&FRAME) {
            let len = bytes.len() - FRAME_LEN.end;
            bytes[FRAME_LEN].copy_from_slice(&(len as u64).to_le_bytes());
        }
        bytes.into()
    }

    /// All that can be read of a call.
    fn shown(call: &Call) -> String {
        let arguments: Vec<_> = call
            .args()
            .iter()
            .map(|argument| {
                let payload: Result<Payload, _> = call.payload(argument, &limits());
                (payload, call.atom(argument))
            })
            .collect();
        let keywords: Vec<_> =
            call.kwargs().map(|(name, argument)| (name, call.atom(&argument))).collect();
        let head = (call.ident(), call.method(), call.protocol());
        format!("{head:?} {arguments:?} {keywords:?}")
    }

    fn templates_of(request: &Bytes) -> RequestTemplates<u8> {
        let mut templates = RequestTemplates::default();
        templates.learn(&Call::parse(request.clone(), &limits()).unwrap(), 7);
        templates
    }

    #[test]
    fn a_request_that_differs_in_its_arguments_is_recognized() {
        let cases: [(usize, &[u8], &[u8]); 5] = [
            (0, b"K\x01", b"K\x02K\x03\x86"),
            (1, b"K\x01N", b"\x8c\x05hello\x94]\x94(K\x01K\x02e"),
            (2, b"U\x02abq\x02", b"U\x03abcq\x02"),
            (4, b"C\x02ab", b"C\x03abc"),
            (5, b")", b")"),
        ];
        for (around, learned, other) in cases {
            let around = AROUND[around];
            let templates = templates_of(&request(around, learned));
            let other = request(around, other);
            let (call, beside) =
                templates.recognize(&other, &limits()).expect("it is of that kind");
            let parsed = Call::parse(other, &limits()).unwrap();
            assert_eq!((shown(&call), *beside), (shown(&parsed), 7));
        }
    }

    #[test]
    fn a_request_without_arguments_is_recalled_only_if_it_is_the_same() {
        let (head, tail): (&[u8], &[u8]) =
            (b"\x80\x04\x95\x10\0\0\0\0\0\0\0(\x8c\x02q1\x94\x8c\x03get\x94", b")}\x94t\x94.");
        let whole = request((head, tail), b"");
        let templates = templates_of(&whole);
        assert_eq!(templates.recall(&whole), Some(&7));
        for at in (0..whole.len()).filter(|at| !FRAME_LEN.contains(at)) {
            let mut other = whole.to_vec();
            other[at] ^= 1;
            assert_eq!(templates.recall(&other), None, "{at}");
        }
        assert_eq!(templates.recall(&whole[..whole.len() - 1]), None);
        let with_one = request(AROUND[0], b"K\x01");
        assert_eq!(templates_of(&with_one).recall(&with_one), None);
    }

    #[test]
    fn what_is_of_no_kind_that_was_learned_is_left_to_be_parsed() {
        let around = AROUND[0];
        let templates = templates_of(&request(around, b"K\x01"));
        let others: [&[u8]; 9] = [
            b"",
            b"K\x01K\x02",
            b"h\x01",
            b"2",
            b"0",
            b"(K\x01",
            b"K",
            b"\x80\x04K\x01",
            b"\x96\x01\0\0\0\0\0\0\0a",
        ];
        for arguments in others {
            let found = templates.recognize(&request(around, arguments), &limits());
            assert!(found.is_none(), "{arguments:?}");
        }
        let renamed = request(around, b"K\x01").to_vec();
        for at in (0..renamed.len()).filter(|at| !FRAME_LEN.contains(at)) {
            let mut bytes = renamed.clone();
            bytes[at] ^= 1;
            let bytes = Bytes::from(bytes);
            if let Some((call, _)) = templates.recognize(&bytes, &limits()) {
                assert_eq!(shown(&call), shown(&Call::parse(bytes, &limits()).unwrap()), "{at}");
            }
        }
    }

    #[test]
    fn what_reads_the_arguments_from_behind_is_no_kind() {
        let around: (&[u8], &[u8]) = (b"\x80\x02(U\x02q1U\x03put", b"\x85h\x050}t.");
        let templates = templates_of(&request(around, b"(Nq\x05t"));
        assert!(templates.recognize(&request(around, b"(Nq\x05t"), &limits()).is_none());
        assert!(templates.recognize(&request(around, b"K\x01"), &limits()).is_none());
    }

    #[test]
    fn a_kind_is_remembered_once() {
        let around = AROUND[0];
        let mut templates = templates_of(&request(around, b"K\x01"));
        for _ in 0..9 {
            // An empty tuple is always parsed.
            templates.learn(&Call::parse(request(around, b")"), &limits()).unwrap(), 8);
        }
        assert_eq!(templates.kinds.len(), 1);
        assert_eq!(templates.recognize(&request(around, b"K\x02"), &limits()).unwrap().1, &8);
    }

    #[test]
    fn calls_of_many_arguments_are_not_remembered() {
        let around: (&[u8], &[u8]) = (b"\x80\x03(U\x02q1U\x03put(", b"t}t.");
        let many = templates_of(&request(around, &b"N".repeat(ARGUMENTS_MAX + 1)));
        assert!(many.kinds.is_empty());
        let most = templates_of(&request(around, &b"N".repeat(ARGUMENTS_MAX)));
        assert_eq!(most.kinds.len(), 1);
    }

    #[test]
    fn the_kinds_that_are_remembered_are_few_and_short() {
        let mut templates = RequestTemplates::default();
        let method = |name: &str| {
            let name = [&[u8::try_from(name.len()).unwrap()], name.as_bytes()].concat();
            Bytes::from([b"\x80\x03(U\x02q1U", &name[..], b")}t."].concat())
        };
        for kind in 0..9u8 {
            let request = method(&format!("m{kind}"));
            templates.learn(&Call::parse(request.clone(), &limits()).unwrap(), kind);
            assert_eq!(templates.recognize(&request, &limits()).unwrap().1, &kind);
        }
        assert_eq!(templates.kinds.len(), KINDS_MAX);
        let long = method(&"m".repeat(255));
        templates.learn(&Call::parse(long.clone(), &limits()).unwrap(), 9);
        assert!(templates.recognize(&long, &limits()).is_none());
    }

    /// Opcodes that come together as they may.
    fn arguments() -> impl Strategy<Value = Vec<u8>> {
        let parts: [&'static [u8]; 24] = [
            b"N",
            b"K\x07",
            b"U\x03abc",
            b"C\x03abc",
            b"\x8c\x02hi",
            b"X\x01\0\0\0x",
            b"]",
            b"}",
            b")",
            b"(",
            b"t",
            b"\x85",
            b"\x86",
            b"a",
            b"e",
            b"s",
            b"0",
            b"1",
            b"2",
            b"\x94",
            b"q\x02",
            b"q\x09",
            b"h\x00",
            b"cos\nsystem\n",
        ];
        prop::collection::vec(prop::sample::select(parts.to_vec()), 0..8)
            .prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn what_is_recognized_is_what_would_be_parsed(
            around in 0..AROUND.len(),
            learned in arguments(),
            other in arguments(),
        ) {
            let around = AROUND[around];
            let mut templates = RequestTemplates::default();
            let plain: [&[u8]; 4] = [b"K\x01", b"K\x01N", b"C\x01a", b")"];
            for arguments in plain.into_iter().chain([&learned[..]]) {
                if let Ok(call) = Call::parse(request(around, arguments), &limits()) {
                    templates.learn(&call, ());
                }
            }
            let other = request(around, &other);
            if let Some((call, ())) = templates.recognize(&other, &limits()) {
                let parsed = Call::parse(other, &limits()).expect("what was recognized is whole");
                prop_assert_eq!(shown(&call), shown(&parsed));
            }
        }
    }
}
