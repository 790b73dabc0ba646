//! What a client sends and reads: requests that every CPython server understands, and its answers.
//!
//! Requests are protocol 2 without a memo, names as byte strings, so that Python 2.7 finds its
//! `str` and Python 3 decodes ASCII. An answer is cut, not built: the value in it stays a
//! [`Payload`] until somebody asks what it is.

use bytes::{BufMut, Bytes, BytesMut};

use super::pickle::{Atom, Dialect, Limits, Opcode, Pair, Payload, PickleError, Value};

/// Protocol of requests whose items need no later one.
const LEAST_PROTOCOL: u8 = 2;

/// One positional argument of a request.
#[derive(Debug, Clone, Copy)]
pub enum Parameter<'a> {
    /// A name: typeid, ident, session.
    Text(&'a str),
    /// A switch.
    Bool(bool),
    /// A time-out.
    Seconds(f64),
    /// A user's object.
    Item(&'a Payload),
}

/// Encodes the call of `method` on the object `ident`, or on the manager itself if there is none.
///
/// At most one parameter may be an [`Item`](Parameter::Item): the memo of a second one would shift.
#[must_use]
pub fn encode(ident: Option<&str>, method: &str, parameters: &[Parameter<'_>]) -> Bytes {
    let item = parameters.iter().find_map(|parameter| match parameter {
        Parameter::Item(item) => Some(*item),
        _ => None,
    });
    let mut out = BytesMut::new();
    put(Opcode::Proto, &mut out);
    out.put_u8(item.map_or(LEAST_PROTOCOL, |item| item.written_in().max(LEAST_PROTOCOL)));
    out.put_slice(item.map_or(&[], |item| item.prelude()));
    put(Opcode::Mark, &mut out);
    match ident {
        Some(ident) => put_text(ident, &mut out),
        None => put(Opcode::None, &mut out),
    }
    put_text(method, &mut out);
    put(Opcode::Mark, &mut out);
    for parameter in parameters {
        match parameter {
            Parameter::Text(text) => put_text(text, &mut out),
            Parameter::Bool(true) => put(Opcode::NewTrue, &mut out),
            Parameter::Bool(false) => put(Opcode::NewFalse, &mut out),
            Parameter::Seconds(seconds) => {
                put(Opcode::BinFloat, &mut out);
                out.put_f64(*seconds);
            }
            Parameter::Item(item) => out.put_slice(item.object()),
        }
    }
    put(Opcode::Tuple, &mut out);
    put(Opcode::EmptyDict, &mut out);
    put(Opcode::Tuple, &mut out);
    put(Opcode::Stop, &mut out);
    out.freeze()
}

fn put(opcode: Opcode, out: &mut BytesMut) {
    out.put_u8(opcode as u8);
}

fn put_text(text: &str, out: &mut BytesMut) {
    match u8::try_from(text.len()) {
        Ok(len) if text.is_ascii() => {
            put(Opcode::ShortBinString, out);
            out.put_u8(len);
        }
        _ => {
            put(Opcode::BinUnicode, out);
            out.put_u32_le(u32::try_from(text.len()).unwrap_or(u32::MAX));
        }
    }
    out.put_slice(text.as_bytes());
}

/// What a server said to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// How it is meant.
    pub kind: Kind,
    /// The value that came with it.
    pub value: Payload,
    /// Which Python speaks there.
    pub dialect: Dialect,
}

/// The kinds of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `#RETURN`: the call's result.
    Return,
    /// `#ERROR`: the exception that the call raised.
    Error,
    /// `#TRACEBACK`: the server could not make the call; a text.
    Traceback,
    /// `#UNSERIALIZABLE`: the result cannot be pickled; a text.
    Unserializable,
    /// `#PROXY`: the result stays on the server.
    Proxy,
}

impl Kind {
    fn named(name: &str) -> Option<Self> {
        match name {
            "#RETURN" => Some(Self::Return),
            "#ERROR" => Some(Self::Error),
            "#TRACEBACK" => Some(Self::Traceback),
            "#UNSERIALIZABLE" => Some(Self::Unserializable),
            "#PROXY" => Some(Self::Proxy),
            _ => None,
        }
    }
}

impl Answer {
    /// Cuts an answer `(kind, value)` in two.
    ///
    /// Python 2.7 is known by its protocol 2 with a memo entry for the kind. Our own server answers
    /// in protocol 2 as well, but never memoizes, and stands for Python 3.
    ///
    /// # Errors
    ///
    /// [`PickleError`] when the bytes are anything else than a pickled pair with a known kind.
    pub fn decode(body: &Bytes, limits: &Limits) -> Result<Self, PickleError> {
        let pair = Pair::parse(body, limits)?;
        let kind = match &pair.first {
            Atom::Text(name) => Kind::named(name),
            _ => None,
        };
        let what = "answer of an unknown kind";
        let kind = kind.ok_or(PickleError::Malformed { what, offset: 0 })?;
        let is_python2 = pair.protocol <= 2 && pair.is_first_stored;
        let dialect = if is_python2 { Dialect::Python2 } else { Dialect::Python3 };
        Ok(Self { kind, value: pair.second, dialect })
    }

    /// The text of a traceback or an unserializable result.
    #[must_use]
    pub fn text(&self, limits: &Limits) -> String {
        match self.value.value(limits) {
            Ok(Value::Str(text)) => text,
            Ok(Value::Bytes(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
            Ok(other) => other.to_string(),
            Err(error) => error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::pickle::to_payload;

    fn decode(bytes: &'static [u8]) -> Result<Answer, PickleError> {
        Answer::decode(&Bytes::from_static(bytes), &Limits::default())
    }

    fn value(bytes: &'static [u8]) -> Value {
        decode(bytes).unwrap().value.value(&Limits::default()).unwrap()
    }

    // The expected bytes were accepted by the managers of Python 2.7 and 3.6 to 3.13.
    #[test]
    fn requests_are_protocol_2_without_a_memo() {
        let dummy = encode(None, "dummy", &[]);
        assert_eq!(dummy, &b"\x80\x02(NU\x05dummy(t}t."[..]);
        let item = to_payload(&5, Dialect::Python2).unwrap();
        let parameters = [Parameter::Item(&item), Parameter::Bool(true), Parameter::Seconds(1.0)];
        let put = encode(Some("q1"), "put", &parameters);
        assert_eq!(put, &b"\x80\x02(U\x02q1U\x03put(K\x05\x88G\x3f\xf0\0\0\0\0\0\0t}t."[..]);
    }

    #[test]
    fn answers_of_every_python_are_cut() {
        // Python 2.7, 3.6, 3.8, and our own server.
        let none = [
            &b"\x80\x02U\x07#RETURNq\x01N\x86q\x02."[..],
            b"\x80\x03X\x07\0\0\0#RETURNq\0N\x86q\x01.",
            b"\x80\x04\x95\x0e\0\0\0\0\0\0\0\x8c\x07#RETURN\x94N\x86\x94.",
            b"\x80\x02U\x07#RETURNN\x86.",
        ];
        let python2 = [Dialect::Python2, Dialect::Python3, Dialect::Python3, Dialect::Python3];
        for (bytes, dialect) in none.into_iter().zip(python2) {
            let answer = decode(bytes).unwrap();
            assert_eq!((answer.kind, answer.dialect), (Kind::Return, dialect));
            assert_eq!(answer.value.bytes, &b"N"[..]);
            assert_eq!(answer.value.prelude_len, 0);
        }
        let empty = decode(
            b"\x80\x04\x95\x22\0\0\0\0\0\0\0\x8c\x06#ERROR\x94\x8c\x06_queue\x94\x8c\x05Empty\x94\x93\x94)R\x94\x86\x94.",
        );
        assert_eq!(empty.unwrap().kind, Kind::Error);
    }

    #[test]
    fn a_value_keeps_the_memo_that_it_refers_to() {
        // ('#RETURN', [x, x]) as Python 3.8 writes it; the value's own entry is number 1.
        let list = value(b"\x80\x04\x8c\x07#RETURN\x94](\x8c\x01x\x94h\x01e\x86\x94.");
        assert_eq!(list.to_string(), "['x', 'x']");
        // The same behind a prelude, as our own server sends it.
        let list = value(b"\x80\x04N\x94\x940U\x07#RETURN](\x8c\x01x\x94h\x02e\x86.");
        assert_eq!(list.to_string(), "['x', 'x']");
        // A frame between the items goes.
        let framed =
            b"\x80\x04\x8c\x07#RETURN\x94](\x95\x01\0\0\0\0\0\0\0\x8c\x01x\x94h\x01e\x86\x94.";
        let answer = decode(framed).unwrap();
        assert!(!answer.value.bytes.contains(&0x95));
        assert_eq!(value(framed).to_string(), "['x', 'x']");
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        let answers = [
            &b""[..],
            b"\x80\x02N.",
            b"\x80\x02U\x07#RETURN.",
            b"\x80\x02U\x03badN\x86.",
            b"\x80\x02U\x07#RETURNN\x86.x",
            b"\x80\x02U\x07#RETURNN\x860.",
            b"\x80\x02U\x07#RETURNNN\x87.",
            b"\x80\x02(U\x07#RETURNN\x86.",
        ];
        for bytes in answers {
            assert!(decode(bytes).is_err(), "{}", bytes.escape_ascii());
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_cut_or_refused(tail in proptest::collection::vec(0u8.., 0..100)) {
            let bytes = [b"\x80\x02U\x07#RETURN", tail.as_slice()].concat();
            let _outcome = Answer::decode(&Bytes::from(bytes), &Limits::default());
        }
    }
}
