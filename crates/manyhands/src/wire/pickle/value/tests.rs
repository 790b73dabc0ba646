//! What is read, refused and bounded, and how it is shown.

use super::super::Codec;
use super::reader::NAME_LEN_MAX;
use super::*;

fn decode(pickle: &[u8]) -> Result<Value, PickleError> {
    decode_within(pickle, &Limits::default())
}

fn decode_within(pickle: &[u8], limits: &Limits) -> Result<Value, PickleError> {
    Payload::from_standalone(pickle.to_vec().into(), limits)?.value(limits)
}

fn check(pickle: &[u8], expected: Value) {
    assert_eq!(decode(pickle), Ok(expected), "{}", pickle.escape_ascii());
}

fn text(text: &str) -> Value {
    Value::Str(text.to_owned())
}

#[test]
fn integers_of_every_spelling_are_read() {
    check(b"K\xff.", Value::Int(255));
    check(b"M\x01\x02.", Value::Int(513));
    check(b"J\xfe\xff\xff\xff.", Value::Int(-2));
    check(b"\x8a\x00.", Value::Int(0));
    check(b"\x8a\x02\x00\xff.", Value::Int(-256));
    check(b"\x8a\x08\0\0\0\0\0\0\0\x80.", Value::Int(i64::MIN));
    check(b"\x8a\x09\0\0\0\0\0\0\0\x80\0.", Value::BigInt(vec![0, 0, 0, 0, 0, 0, 0, 0x80, 0]));
    check(b"I42\n.", Value::Int(42));
    check(b"I01\n.", Value::Bool(true));
    check(b"L-7L\n.", Value::Int(-7));
    check(b"L-18446744073709551616L\n.", Value::BigInt(vec![0, 0, 0, 0, 0, 0, 0, 0, 0xff]));
    check(b"L9223372036854775808L\n.", Value::BigInt(vec![0, 0, 0, 0, 0, 0, 0, 0x80, 0]));
    assert!(decode(b"I4x\n.").is_err());
    assert!(decode(b"I\n.").is_err());
}

#[test]
fn text_of_every_spelling_is_read() {
    check("X\u{3}\0\0\0\u{20ac}.".as_bytes(), text("€"));
    check(b"U\x03abc.", text("abc"));
    check(b"U\x02\xc3\xa4.", Value::Bytes(vec![0xc3, 0xa4]));
    check(b"S'a\\'\\x41\\n'\n.", text("a'A\n"));
    check(b"V\\u20ac\xe4\\U0001f600\\ud83d\\ude00\\n\n.", text("€ä😀😀\\n"));
    assert!(decode(b"V\\ud83d\n.").is_err(), "a lone surrogate is no text");
    assert!(decode(b"X\x03\0\0\0\xed\xa0\xbd.").is_err(), "a lone surrogate is no text");
}

#[test]
fn builtin_types_written_as_calls_are_plain_data() {
    check(
        b"\x80\x02c_codecs\nencode\nX\x03\0\0\0a\xc3\xbfX\x06\0\0\0latin1\x86R.",
        Value::Bytes(vec![b'a', 0xff]),
    );
    check(b"\x80\x02c__builtin__\nbytes\n)R.", Value::Bytes(vec![]));
    check(b"\x80\x02c__builtin__\nset\n](K\x01K\x02e\x85R.", {
        Value::Set(vec![Value::Int(1), Value::Int(2)])
    });
    check(b"\x80\x03cbuiltins\nbytearray\nC\x01a\x85R.", Value::ByteArray(vec![b'a']));
}

#[test]
fn objects_are_named_and_never_resolved() {
    let Ok(Value::Object(object)) = decode(b"cos\nsystem\nX\x02\0\0\0ls\x85R}b.") else {
        panic!("not an object")
    };
    assert_eq!(object.to_string(), "os.system");
    assert_eq!(object.args, Some(vec![text("ls")]));
    assert_eq!(object.state, [Value::Dict(vec![])]);
    assert_eq!(Value::Object(object).to_string(), "os.system('ls') with {}");
    let reconstructed = b"ccopy_reg\n_reconstructor\n(c__main__\nTask\nc__builtin__\nobject\nNtR.";
    let Ok(Value::Object(object)) = decode(reconstructed) else { panic!("not an object") };
    assert_eq!(object.to_string(), "__main__.Task");
}

#[test]
fn a_list_filled_after_it_was_memoized_is_copied_whole() {
    let list = Value::List(vec![Value::Int(5)]);
    check(b"\x80\x04]\x94K\x05ah\x00\x86.", Value::Tuple(vec![list.clone(), list]));
}

#[test]
fn data_that_contains_itself_is_an_error() {
    let error = decode(b"\x80\x04]\x94h\x00a.").unwrap_err();
    assert_eq!(error.to_string(), "value that contains itself at offset 0");
}

#[test]
fn deep_nesting_is_an_error_and_not_a_crash() {
    for (open, close) in
        [(b"]".repeat(100_000), b"a".repeat(99_999)), (b"]".repeat(129), { b"a".repeat(128) })]
    {
        let pickle = [open.as_slice(), &close, b"."].concat();
        assert!(matches!(decode(&pickle), Err(PickleError::TooLarge { limit: 128, .. })));
    }
    let pickle = [b"]".repeat(128).as_slice(), &b"a".repeat(127), b"."].concat();
    assert!(decode(&pickle).is_ok());
}

#[test]
fn memo_bombs_are_an_error() {
    let mut doubling = b"]\x94".to_vec();
    for level in 0..40u8 {
        doubling.extend([b'(', b'h', level, b'h', level, b'l', 0x94]);
    }
    doubling.push(b'.');
    doubling.splice(0..0, [0x80, 4, b'(']);
    doubling.splice(doubling.len() - 1.., *b"t.");
    let error = decode(&doubling).unwrap_err();
    assert_eq!(error, PickleError::TooLarge { what: "values", limit: 1 << 20 });

    let mut copies = b"\x80\x04(X\x00\x00\x01\x00".to_vec();
    copies.extend([b'x'; 1 << 16]);
    copies.push(0x94);
    copies.extend(b"h\x00".repeat(100));
    copies.extend(b"t.");
    let error = decode(&copies).unwrap_err();
    let what = "bytes beyond the size of the pickle";
    assert_eq!(error, PickleError::TooLarge { what, limit: 1 << 20 });
}

#[test]
fn calls_of_calls_do_not_multiply_a_name() {
    let calls = |name_len: usize| {
        let name = vec![b'x'; name_len];
        [b"c", name.as_slice(), b"\nn\n", &b")R".repeat(120), b"."].concat()
    };
    let limits = Limits { expansion_max: 0, ..Limits::default() };
    let what = "bytes beyond the size of the pickle";
    let error = decode_within(&calls(1000), &limits).unwrap_err();
    assert_eq!(error, PickleError::TooLarge { what, limit: 0 });
    assert!(decode(&calls(1000)).is_ok());

    let what = "bytes in the name of a class or function";
    let error = decode(&calls(NAME_LEN_MAX + 1)).unwrap_err();
    assert_eq!(error, PickleError::TooLarge { what, limit: NAME_LEN_MAX });
    let text = [b"V", vec![b'x'; NAME_LEN_MAX + 1].as_slice(), b"\n"].concat();
    let error = decode(&[b"\x80\x04", text.as_slice(), &text, b"\x93."].concat()).unwrap_err();
    assert_eq!(error, PickleError::TooLarge { what, limit: NAME_LEN_MAX });
}

#[test]
fn the_memo_is_no_larger_than_a_value_may_be() {
    let limits = Limits { values_max: 3, ..Limits::default() };
    assert!(decode_within(b"\x80\x04(N\x94\x94\x94t.", &limits).is_ok());
    let error = decode_within(b"\x80\x04(N\x94\x94\x94\x94t.", &limits).unwrap_err();
    assert_eq!(error, PickleError::TooLarge { what: "memo entries", limit: 3 });
}

#[test]
fn memo_entries_are_found_whatever_their_numbers() {
    check(
        b"(K\x01q\x05K\x02q\x07K\x03q\x06K\x04q\x02K\x05q\x070h\x05h\x06h\x07h\x02t.",
        Value::Tuple([1, 2, 3, 4, 1, 3, 5, 4].map(Value::Int).to_vec()),
    );
}

#[test]
fn values_are_shown_as_python_shows_them() {
    let value = decode(b"\x80\x04(N\x88K\x01G\x3f\xf0\0\0\0\0\0\0X\x02\0\0\0a'C\x01\xff](K\x01K\x02eK\x01\x85}K\x01Ns\x8ft.");
    let shown = r"(None, True, 1, 1.0, 'a\'', b'\xff', [1, 2], (1,), {1: None}, set())";
    assert_eq!(value.unwrap().to_string(), shown);
}

#[test]
fn a_payload_is_read_without_its_ends() {
    let payload = Payload {
        codec: Codec::Pickle(4),
        prelude_len: 4,
        bytes: bytes::Bytes::from_static(b"N\x94\x940]\x94K\x01a"),
    };
    let value = payload.value(&Limits::default());
    assert_eq!(value, Ok(Value::List(vec![Value::Int(1)])));
}

#[test]
fn what_is_no_pickle_is_refused() {
    for pickle in [&b""[..], b"N", b".", b"NN.", b"(.", b"N.N", b"\x80\x06N.", b"h\x05.", b"e."] {
        assert!(decode(pickle).is_err(), "{}", pickle.escape_ascii());
    }
    for pickle in [&b"Pid\n."[..], b"\x97.", b"(N\x85.", b"K\x01)R.", b"\xff.", b"](K\x01u."] {
        assert!(decode(pickle).is_err(), "{}", pickle.escape_ascii());
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(0u8.., 0..200)) {
        let limits = Limits { values_max: 1000, ..Limits::default() };
        let _outcome = decode_within(&bytes, &limits);
    }
}
