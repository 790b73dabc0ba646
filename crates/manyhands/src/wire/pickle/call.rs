//! One request, scanned but not built.
//!
//! Names the regions that `scan.rs` found: ident, method, positional and keyword arguments. An
//! argument is read as an [`Atom`] or cut out as a [`Payload`]; nothing else is ever looked at.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;
use smallvec::SmallVec;

use super::atom::{self, Atom};
use super::cut;
use super::memo::{Query, definitions};
use super::opcode::{Effect, Op, Opcode, Opcodes};
use super::regions::{Kind, Region};
use super::scan::{self, Header, Scan, Scanner};
use super::{Limits, Payload, PickleError, Value};

/// A scanned request `(ident, method, args, kwds)`.
#[derive(Debug, Clone)]
pub struct Call {
    frame: Bytes,
    header: Header,
    ident: Option<Name>,
    method: Name,
    args: SmallVec<[Argument; 2]>,
    /// Few calls have any.
    kwargs: Vec<(Name, Argument)>,
}

/// Where one argument stands in its [`Call`].
///
/// Its region is never of a `Kind::Fetched`: it is a constant, through the memo, or anything.
#[derive(Debug, Clone, Copy)]
pub struct Argument(Region);

/// A text of the request: where it stands if it stands there as it is, or what it spells.
#[derive(Debug, Clone)]
enum Name {
    Verbatim { start: usize, end: usize },
    Spelled(String),
}

impl Call {
    /// Scans a request, once and without recursion, building nothing.
    ///
    /// # Errors
    ///
    /// [`PickleError::NotARequest`] for a pickle of something else; otherwise what is wrong with
    /// the pickle, or the bound of `limits` that it reaches.
    pub fn parse(frame: Bytes, limits: &Limits) -> Result<Self, PickleError> {
        let mut scanner = Scanner::default();
        let scan = scanner.scan(&frame, limits)?;
        let envelope = Envelope::of(&scan)?;
        let mut memo = definitions(&frame, &envelope.queries(&frame)?)?.into_iter();
        let mut resolve = |region: &Region| Argument::resolve(region, &mut memo);
        let ident = resolve(envelope.ident);
        let method = resolve(envelope.method);
        let args = envelope.args.iter().map(&mut resolve).collect();
        let keyword = |[key, value]: &[Region; 2]| {
            let key = resolve(key);
            let name = Name::read(&frame, &key).ok_or(not_a_request("keyword is not text"))?;
            Ok((name, resolve(value)))
        };
        let kwargs = envelope.kwargs.iter().map(keyword).collect::<Result<_, _>>()?;
        let ident = match ident.opcode(&frame) {
            Some(Opcode::None) => None,
            _ => Some(Name::read(&frame, &ident).ok_or(not_a_request("ident is not text"))?),
        };
        let method = Name::read(&frame, &method).ok_or(not_a_request("method is not text"))?;
        Ok(Self { header: scan.header, ident, method, args, kwargs, frame })
    }

    /// The ident that a request names first, whatever its arguments are; `None` for the manager itself.
    ///
    /// # Errors
    ///
    /// As [`parse`](Self::parse), but a call may have any number of arguments.
    pub fn addressee(frame: &[u8], limits: &Limits) -> Result<Option<String>, PickleError> {
        let mut scanner = Scanner::default();
        let [ident, _, _, _] = scanner.scan(frame, limits)?.parts else {
            return Err(not_a_request("not a tuple of four"));
        };
        let ident = Argument(*ident);
        if ident.opcode(frame) == Some(Opcode::None) {
            return Ok(None);
        }
        let name = Name::read(frame, &ident).ok_or(not_a_request("ident is not text"))?;
        Ok(Some(name.text(frame).to_owned()))
    }

    /// What the request's PROTO says, 0 without it: shows what its sender can read.
    #[must_use]
    pub fn protocol(&self) -> u8 {
        self.header.declared
    }

    /// Which object the call is for; `None` for the manager itself.
    #[must_use]
    pub fn ident(&self) -> Option<&str> {
        self.ident.as_ref().map(|name| name.text(&self.frame))
    }

    /// The method's name.
    #[must_use]
    pub fn method(&self) -> &str {
        self.method.text(&self.frame)
    }

    /// The same, as it can be compared without being read as text again.
    pub(in crate::wire) fn method_bytes(&self) -> &[u8] {
        self.method.bytes(&self.frame)
    }

    /// Positional arguments.
    #[must_use]
    pub fn args(&self) -> &[Argument] {
        &self.args
    }

    /// Keyword arguments, in the order of the request. Of two with one name, Python takes the last.
    pub fn kwargs(&self) -> impl Iterator<Item = (&str, Argument)> {
        self.kwargs.iter().map(|(name, argument)| (name.text(&self.frame), *argument))
    }

    /// The argument as a simple value, through the memo if need be; `None` if it is none.
    #[must_use]
    pub fn atom(&self, argument: &Argument) -> Option<Atom> {
        Atom::read(&argument.constant(&self.frame)?)
    }

    /// Cuts the argument out whole, so that it can stand in any reply.
    ///
    /// Mostly the bytes are those of the request itself, shared and not copied; whoever keeps a
    /// payload for long may want to copy it, since it keeps the whole request in memory.
    ///
    /// # Errors
    ///
    /// [`PickleError::TooLarge`] if it shares so much with other arguments that it would grow by
    /// more than `limits` allow.
    pub fn payload(&self, argument: &Argument, limits: &Limits) -> Result<Payload, PickleError> {
        cut::cut(&self.frame, &self.header, &argument.0, limits)
    }

    /// What stands in front of the arguments and behind them, if that alone says how all of the
    /// request but them is to be read. Without arguments it is the whole request.
    pub(super) fn around(&self) -> Option<(&[u8], &[u8])> {
        // Which protocol is required without PROTO, the arguments say too.
        if self.header.declared < 2 {
            return None;
        }
        let (Some(first), Some(last)) = (self.args.first(), self.args.last()) else {
            return Some((&self.frame, &[]));
        };
        let ident = self.ident.as_ref()?;
        let is_in_front =
            ident.ends_before(first.0.start) && self.method.ends_before(first.0.start);
        let is_plain = self.args.iter().all(|argument| !argument.0.remarkable);
        if !is_in_front || !is_plain || !self.kwargs.is_empty() {
            return None;
        }
        let tail = self.frame.get(last.0.end..)?;
        // It may ask for what the arguments stored.
        let asks = |op: &Op<'_>| matches!(op.effect, Effect::Fetch | Effect::Dup);
        if Opcodes::new(tail).flatten().any(|op| asks(&op)) {
            return None;
        }
        Some((self.frame.get(..first.0.start)?, tail))
    }

    /// The request of the same kind in `frame`, which has the same [around](Self::around) its
    /// `arguments`. `None` if these do not stand by themselves, or are not as many.
    pub(super) fn again(
        &self,
        frame: &Bytes,
        arguments: Range<usize>,
        limits: &Limits,
    ) -> Option<Self> {
        let Some(&Argument(first)) = self.args.first() else {
            return arguments.is_empty().then(|| Self { frame: frame.clone(), ..self.clone() });
        };
        let like = (&self.header, &first, self.args.len());
        let args = scan::arguments(frame, arguments, like, limits)?;
        Some(Self {
            frame: frame.clone(),
            header: self.header,
            ident: self.ident.clone(),
            method: self.method.clone(),
            args: args.into_iter().map(Argument).collect(),
            kwargs: Vec::new(),
        })
    }

    /// The same without its bytes, which say nothing that the rest needs.
    pub(super) fn without_bytes(&self) -> Self {
        Self { frame: Bytes::new(), ..self.clone() }
    }

    /// The ident in an argument that is a `multiprocessing.managers.Token`, whose state is
    /// `(typeid, address, ident)`.
    #[must_use]
    pub fn token_id(&self, argument: &Argument) -> Option<String> {
        let limits = Limits::default();
        match self.payload(argument, &limits).ok()?.value(&limits).ok()? {
            Value::Object(token) if token.name == "Token" => match token.state.first()? {
                Value::Tuple(state) => match state.as_slice() {
                    [_, _, Value::Str(ident)] => Some(ident.clone()),
                    _ => None,
                },
                _ => None,
            },
            _ => None,
        }
    }
}

impl Argument {
    /// `memo` yields the opcode of each fetched region in turn.
    fn resolve(region: &Region, memo: &mut impl Iterator<Item = Option<Range<usize>>>) -> Self {
        let kind = match region.kind {
            Kind::Fetched(_) => match memo.next().flatten() {
                Some(range) => Kind::Constant(range.start),
                None => Kind::Other,
            },
            kind => kind,
        };
        Self(Region { kind, ..*region })
    }

    /// The opcode that spells the argument, if there is one that does.
    fn constant<'a>(&self, frame: &'a [u8]) -> Option<Op<'a>> {
        match self.0.kind {
            Kind::Constant(at) => Opcodes::between(frame, at, frame.len()).next()?.ok(),
            _ => None,
        }
    }

    fn opcode(&self, frame: &[u8]) -> Option<Opcode> {
        self.constant(frame).map(|op| op.opcode)
    }
}

impl Name {
    fn read(frame: &[u8], argument: &Argument) -> Option<Self> {
        let op = argument.constant(frame)?;
        Some(match atom::text(&op)? {
            Cow::Borrowed(text) => Self::Verbatim { start: op.end - text.len(), end: op.end },
            Cow::Owned(text) => Self::Spelled(text),
        })
    }

    /// Whether it stands in the request as it is, and in front of `offset`.
    fn ends_before(&self, offset: usize) -> bool {
        matches!(self, Self::Verbatim { end, .. } if *end <= offset)
    }

    fn text<'a>(&'a self, frame: &'a [u8]) -> &'a str {
        match self {
            // Was text when it was read.
            Self::Verbatim { .. } => std::str::from_utf8(self.bytes(frame)).unwrap_or_default(),
            Self::Spelled(text) => text,
        }
    }

    fn bytes<'a>(&'a self, frame: &'a [u8]) -> &'a [u8] {
        match self {
            &Self::Verbatim { start, end } => frame.get(start..end).unwrap_or_default(),
            Self::Spelled(text) => text.as_bytes(),
        }
    }
}

/// The regions of a request that are looked into. The memo may lead from any to any before it: an
/// interned string is pickled once, whether it is the method's name, a keyword or a key inside an
/// argument.
struct Envelope<'s> {
    ident: &'s Region,
    method: &'s Region,
    args: &'s [Region],
    /// Keywords, each with its value.
    kwargs: &'s [[Region; 2]],
}

impl<'s> Envelope<'s> {
    fn of(scan: &Scan<'s>) -> Result<Self, PickleError> {
        let [ident, method, args, kwargs] = scan.parts else {
            return Err(not_a_request("not a tuple of four"));
        };
        let args = match args.kind {
            Kind::Tuple => scan.args.items()?,
            _ => return Err(not_a_request("arguments are not a tuple")),
        };
        let kwargs = match (kwargs.kind, scan.kwargs.items()?.as_chunks()) {
            (Kind::Dict, (pairs, [])) => pairs,
            (Kind::Dict, _) => return Err(not_a_request("keyword without a value")),
            _ => return Err(not_a_request("keyword arguments are not a dict")),
        };
        Ok(Self { ident, method, args, kwargs })
    }

    /// What has to be looked up in the memo, in the order of the request.
    fn queries(&self, frame: &[u8]) -> Result<SmallVec<[Query; 4]>, PickleError> {
        let head = [self.ident, self.method].into_iter();
        let mut queries = SmallVec::new();
        for region in head.chain(self.args).chain(self.kwargs.as_flattened()) {
            if region.leans {
                let what = "argument that copies another one from the stack";
                return Err(PickleError::Malformed { what, offset: region.start });
            }
            if let Kind::Fetched(at) = region.kind {
                queries.push(Query::read(frame, at)?);
            }
        }
        Ok(queries)
    }
}

fn not_a_request(what: &'static str) -> PickleError {
    PickleError::NotARequest { what }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_KEYWORDS: &[u8] = b"}t.";

    fn parse(parts: &[&[u8]]) -> Result<Call, PickleError> {
        Call::parse(Bytes::from(parts.concat()), &Limits::default())
    }

    fn atoms(call: &Call) -> Vec<Option<Atom>> {
        call.args().iter().map(|argument| call.atom(argument)).collect()
    }

    fn text(text: &str) -> Option<Atom> {
        Some(Atom::Text(text.to_owned()))
    }

    #[test]
    fn whom_a_call_is_for_is_known_however_many_arguments_it_has() {
        let addressee = |parts: &[&[u8]]| Call::addressee(&parts.concat(), &Limits::default());
        let many = b"N".repeat(2 * 64);
        let call: &[&[u8]] = &[b"\x80\x02(U\x02q1U\x03put(", &many, b"t", NO_KEYWORDS];
        assert!(matches!(parse(call), Err(PickleError::TooLarge { .. })));
        assert_eq!(addressee(call), Ok(Some("q1".to_owned())));
        assert_eq!(addressee(&[b"\x80\x02(NU\x05dummy)", NO_KEYWORDS]), Ok(None));
        for junk in [&b"\x80\x02(]U\x03put)}t."[..], b"\x80\x02U\x02q1.", b"q1"] {
            assert!(addressee(&[junk]).is_err(), "{}", junk.escape_ascii());
        }
    }

    #[test]
    fn the_first_request_of_every_python_is_read() {
        let requests: [(&[u8], u8); 3] = [
            (b"\x80\x02(NU\x05dummyq\x01)}q\x02tq\x03.", 2),
            (b"\x80\x03(NX\x05\0\0\0dummyq\0)}q\x01tq\x02.", 3),
            (b"\x80\x04\x95\x10\0\0\0\0\0\0\0(N\x8c\x05dummy\x94)}\x94t\x94.", 4),
        ];
        for (request, protocol) in requests {
            let call = parse(&[request]).unwrap();
            assert_eq!((call.ident(), call.method()), (None, "dummy"));
            assert_eq!((call.args().len(), call.kwargs().count()), (0, 0));
            assert_eq!(call.protocol(), protocol);
        }
    }

    #[test]
    fn protocols_without_proto_are_read() {
        let text = b"(S'q1'\np0\nVput\np1\n(I01\nF2.5\ntp2\n(dp3\ntp4\n.";
        let binary = b"(U\x02q1U\x03put(I01\nG\x40\x04\0\0\0\0\0\0t}t.";
        for request in [&text[..], binary] {
            let call = parse(&[request]).unwrap();
            assert_eq!((call.ident(), call.method(), call.protocol()), (Some("q1"), "put", 0));
            assert_eq!(atoms(&call), [Some(Atom::Bool(true)), Some(Atom::Float(2.5))]);
        }
    }

    #[test]
    fn arguments_are_found_however_their_tuple_was_made() {
        let cases: [(&[u8], usize); 6] = [
            (b")", 0),
            (b"(t", 0),
            (b"K\x00\x85", 1),
            (b"K\x00K\x01\x86", 2),
            (b"K\x00K\x01K\x02\x87", 3),
            (b"(K\x00K\x01K\x02K\x03t", 4),
        ];
        for (args, len) in cases {
            let call = parse(&[b"\x80\x02(NU\x01m", args, NO_KEYWORDS]).unwrap();
            let expected: Vec<_> = (0..len).map(|i| Some(Atom::Int(i as i64))).collect();
            assert_eq!(atoms(&call), expected);
        }
    }

    #[test]
    fn keyword_arguments_are_found_however_their_dict_was_made() {
        let cases: [&[u8]; 4] = [
            b"}U\x01aK\x01sU\x01bK\x02s",
            b"}(U\x01aK\x01U\x01bK\x02u",
            b"(U\x01aK\x01U\x01bK\x02d",
            b"(dU\x01aK\x01sU\x01bK\x02s",
        ];
        for kwargs in cases {
            let call = parse(&[b"\x80\x02(NU\x01m)", kwargs, b"t."]).unwrap();
            let found: Vec<_> = call.kwargs().map(|(name, arg)| (name, call.atom(&arg))).collect();
            assert_eq!(found, [("a", Some(Atom::Int(1))), ("b", Some(Atom::Int(2)))]);
        }
    }

    #[test]
    fn names_and_values_are_read_through_the_memo() {
        // (x, x, ({x: 1, 'block': 2},), {'block': x}) with x = 'put'
        let request = b"\x80\x04(\x8c\x03put\x94h\x00}\x94(h\x00K\x01\x8c\x05block\x94K\x02u\x85\
            \x94}\x94h\x02h\x00st\x94.";
        let call = parse(&[request]).unwrap();
        assert_eq!((call.ident(), call.method()), (Some("put"), "put"));
        let (name, argument) = call.kwargs().next().unwrap();
        assert_eq!((name, call.atom(&argument)), ("block", text("put")));
        assert_eq!(atoms(&call), [None]);
    }

    #[test]
    fn a_memo_entry_means_what_it_held_when_it_was_read() {
        let call = parse(&[b"\x80\x02(NU\x01aq\x01h\x01U\x01bq\x01h\x01\x87}t."]).unwrap();
        assert_eq!(atoms(&call), [text("a"), text("b"), text("b")]);
    }

    #[test]
    fn a_tuple_from_the_memo_is_no_argument_list() {
        let request = b"\x80\x02(N)q\x010U\x01mh\x01}t.";
        let what = "arguments are not a tuple";
        assert_eq!(parse(&[request]).unwrap_err(), PickleError::NotARequest { what });
    }

    #[test]
    fn what_is_no_request_is_named() {
        let cases: [(&[u8], &str); 11] = [
            (b"\x80\x02N.", "not a tuple of four"),
            (b"\x80\x02NNN\x87.", "not a tuple of four"),
            (b"\x80\x02(NU\x01m)}Nt.", "not a tuple of four"),
            (b"\x80\x02(NU\x01m)}l.", "not a tuple of four"),
            (b"\x80\x02(NU\x01m)}t\x85.", "not a tuple of four"),
            (b"\x80\x02(K\x01U\x01m)}t.", "ident is not text"),
            (b"\x80\x02(NN)}t.", "method is not text"),
            (b"\x80\x02(NU\x01m]}t.", "arguments are not a tuple"),
            (b"\x80\x02(NU\x01m))t.", "keyword arguments are not a dict"),
            (b"\x80\x02(NU\x01m)}K\x01K\x01st.", "keyword is not text"),
            (b"\x80\x02(NU\x01m)}(U\x01aut.", "keyword without a value"),
        ];
        for (request, what) in cases {
            let error = parse(&[request]).unwrap_err();
            assert_eq!(error, PickleError::NotARequest { what }, "{request:?}");
        }
    }

    #[test]
    fn a_tuple_changed_after_it_was_made_is_no_request() {
        let what = "not a tuple of four";
        let error = parse(&[b"\x80\x02(NU\x01m)}tNb."]).unwrap_err();
        assert_eq!(error, PickleError::NotARequest { what });
    }

    #[test]
    fn the_ident_in_a_token_is_found() {
        let token = b"\x80\x02(NU\x0bget_methodscmultiprocessing.managers\nToken\nq\x01)\x81q\x02\
            U\x05tasksU\x09localhostM\x88\x13\x86q\x03U\x02q1q\x04\x87q\x05b\x85}t.";
        let call = parse(&[token]).unwrap();
        assert_eq!(call.token_id(&call.args()[0]).as_deref(), Some("q1"));
        let other = parse(&[b"\x80\x02(NU\x0bget_methodsU\x02q1\x85}t."]).unwrap();
        assert_eq!(other.token_id(&other.args()[0]), None);
    }

    #[test]
    fn too_many_arguments_are_refused() {
        let many = [&b"("[..], &[b'N'; 65], b"t"].concat();
        let error = parse(&[b"\x80\x02(NU\x01m", &many, NO_KEYWORDS]).unwrap_err();
        assert_eq!(error, PickleError::TooLarge { what: "arguments", limit: 64 });
        let pairs = [&b"}("[..], &b"U\x01aN".repeat(65), b"u"].concat();
        let error = parse(&[b"\x80\x02(NU\x01m)", &pairs, b"t."]).unwrap_err();
        assert_eq!(error, PickleError::TooLarge { what: "arguments", limit: 64 });
    }

    #[test]
    fn a_tuple_of_any_size_is_one_argument() {
        let tuple = [&b"("[..], &[b'N'; 1000], b"t\x85"].concat();
        let call = parse(&[b"\x80\x02(NU\x01m", &tuple, NO_KEYWORDS]).unwrap();
        assert_eq!(call.args().len(), 1);
        let payload = call.payload(&call.args()[0], &Limits::default()).unwrap();
        assert_eq!(payload.bytes.len(), 1002);
    }

    #[test]
    fn an_argument_that_copies_another_from_the_stack_is_refused() {
        for args in [&b"K\x012\x86"[..], b"K\x0120K\x02\x86"] {
            let error = parse(&[b"\x80\x02(NU\x01m", args, NO_KEYWORDS]).unwrap_err();
            assert!(matches!(error, PickleError::Malformed { .. }), "{error}");
        }
        let inside = parse(&[b"\x80\x02(NU\x01m", b"K\x012\x86\x85", NO_KEYWORDS]).unwrap();
        assert_eq!(inside.args().len(), 1);
    }
}
