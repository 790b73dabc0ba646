//! Round trips of Rust values through pickles.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::*;

fn decode(pickle: &[u8], limits: &Limits) -> Result<Value, PickleError> {
    Payload::from_standalone(pickle.to_vec().into(), limits)?.value(limits)
}

fn pickle<T: Serialize + ?Sized>(value: &T, dialect: Dialect) -> Payload {
    to_payload(value, dialect).unwrap()
}

/// Asserts that `value` comes back as it went.
fn check<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: T) {
    for dialect in [Dialect::Python2, Dialect::Python3] {
        let payload = pickle(&value, dialect);
        let back: T = from_payload(&payload, &Limits::default()).unwrap();
        assert_eq!(back, value, "{dialect:?} {}", payload.bytes.escape_ascii());
    }
}

fn read<T: DeserializeOwned>(bytes: &'static [u8]) -> Result<T, String> {
    let payload = Payload::pickle(5, Bytes::from_static(bytes));
    from_payload(&payload, &Limits::default()).map_err(|error| error.to_string())
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Task {
    id: u64,
    name: String,
    parent: Option<i32>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Shape {
    Point,
    Circle(f64),
    Line(i8, i8),
    Box { w: u8, h: u8 },
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Meters(f64);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Pair(u8, String);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Unit;

/// serde bytes without a crate for them.
#[derive(Debug, PartialEq)]
struct Blob(Vec<u8>);

impl Serialize for Blob {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Blob;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Blob, E> {
                Ok(Blob(bytes))
            }
        }
        deserializer.deserialize_byte_buf(Visitor)
    }
}

#[test]
fn rust_values_come_back_as_they_went() {
    check(Task { id: u64::MAX, name: "tâche".into(), parent: None });
    check((1u8, -1i64, 2.5f32, 'ß', true, ()));
    check([0u16; 3]);
    check(vec![Some(1), None]);
    check(vec![Shape::Point, Shape::Circle(1.5), Shape::Line(1, -2), Shape::Box { w: 1, h: 2 }]);
    check(Meters(3.25));
    check(Pair(7, "x".into()));
    check(Unit);
    check(BTreeMap::from([(-5i64, "a".to_owned()), (9, "b".to_owned())]));
    check((u128::MAX, i128::MIN, u64::MAX, i64::MIN));
    check(Blob((0..=255).collect()));
    check(Blob(vec![0xe9; 300]));
    check((0..2500).collect::<Vec<u32>>());
    check(std::net::Ipv4Addr::LOCALHOST);
}

#[test]
fn the_bytes_are_those_of_protocol_2() {
    let expect = |payload: Payload, protocol: u8, bytes: &[u8]| {
        assert_eq!((payload.protocol(), &payload.bytes[..]), (protocol, bytes));
    };
    expect(pickle(&300, Dialect::Python3), 2, b"M\x2c\x01");
    expect(pickle(&-1, Dialect::Python3), 2, b"J\xff\xff\xff\xff");
    expect(pickle(&(1u64 << 63), Dialect::Python3), 2, b"\x8a\x09\0\0\0\0\0\0\0\x80\0");
    expect(pickle("hi", Dialect::Python3), 2, b"X\x02\0\0\0hi");
    expect(pickle(&(1, 2, 3, 4), Dialect::Python3), 2, b"(K\x01K\x02K\x03K\x04t");
    expect(pickle(&vec![1, 2], Dialect::Python3), 2, b"](K\x01K\x02e");
    expect(pickle(&Blob(vec![255]), Dialect::Python3), 3, b"C\x01\xff");
    expect(pickle(&Blob(vec![255]), Dialect::Python2), 2, b"U\x01\xff");
    expect(pickle(&Meters(1.0), Dialect::Python3), 2, b"G\x3f\xf0\0\0\0\0\0\0");
}

#[test]
fn python_values_are_read_leniently() {
    assert_eq!(read(b"](K\x01K\x02e"), Ok((1, 2)), "a list as a tuple");
    assert_eq!(read(b"K\x01K\x02\x86"), Ok(vec![1, 2]), "a tuple as a list");
    assert_eq!(read(b"\x8f(K\x01\x90"), Ok(vec![1]), "a set as a list");
    assert_eq!(read(b"K\x05"), Ok(5.0), "an int as a float");
    assert_eq!(read(b"\x8a\x09\0\0\0\0\0\0\0\0\x01"), Ok(18_446_744_073_709_551_616.0));
    assert_eq!(read(b"U\x02hi"), Ok("hi".to_owned()), "a Python 2 str as text");
    assert_eq!(read(b"U\x02hi"), Ok(Blob(b"hi".to_vec())), "a Python 2 str as bytes");
    assert_eq!(read(b"U\x02\xc3\xa4"), Ok("ä".to_owned()), "a UTF-8 byte string as text");
    assert_eq!(read(b"C\x02\x00\xff"), Ok(vec![0u8, 255]), "bytes as numbers");
    assert_eq!(read(b"}K\x05X\x01\0\0\0as"), Ok(HashMap::from([(5i64, "a".to_owned())])));
    let task = Task { id: 1, name: "a".into(), parent: Some(2) };
    assert_eq!(read(b"K\x01X\x01\0\0\0aK\x02\x87"), Ok(task), "a tuple as a struct");
    assert_eq!(read(b"U\x05Point"), Ok(Shape::Point));
}

#[test]
fn errors_say_what_was_found_and_what_was_expected() {
    let check = |found: Result<u8, String>, expected: &str| assert_eq!(found, Err(expected.into()));
    check(read(b"X\x02\0\0\0hi"), "invalid type: string \"hi\", expected u8");
    check(read(b"M\x2c\x01"), "invalid value: integer `300`, expected u8");
    check(read(b"G\x3f\xf8\0\0\0\0\0\0"), "invalid type: floating point `1.5`, expected u8");
    check(
        read(b"c__main__\nTask\n)\x81"),
        "invalid type: the Python object __main__.Task, expected u8",
    );
    check(read(b"K"), "pickle data was truncated at offset 1");
    let two: Result<(u8, u8), String> = read(b"K\x01K\x02K\x03\x87");
    assert_eq!(two, Err("invalid length 3, expected 2 elements in sequence".into()));
    let task: Result<Task, String> = read(b"}X\x02\0\0\0idK\x01s");
    assert_eq!(task, Err("missing field `name`".into()));
    let value: Result<Value, String> = read(b"c__main__\nTask\n)\x81");
    let named = "invalid type: the Python object __main__.Task, expected plain data";
    assert_eq!(value, Err(named.into()));
    let object = decode(b"cos\nsystem\n.", &Limits::default()).unwrap();
    let error = to_payload(&object, Dialect::Python3).unwrap_err();
    assert_eq!(error.to_string(), "the Python object os.system is not plain data");
}

#[test]
fn plain_data_becomes_json() {
    let value = Value::Dict(vec![
        (Value::Str("a".into()), Value::Tuple(vec![Value::Int(1), Value::None])),
        (Value::Str("b".into()), Value::Set(vec![Value::Bool(true)])),
        (Value::Str("c".into()), Value::int_from_le_bytes(&[&[0; 20][..], &[0x12, 0x80]].concat())),
    ]);
    let json = serde_json::to_string(&value).unwrap();
    let zeros = "0".repeat(40);
    assert_eq!(json, format!(r#"{{"a":[1,null],"b":[true],"c":"-0x7fee{zeros}"}}"#));
    let back: Value = serde_json::from_str(r#"{"a":[1,-2.5,18446744073709551615]}"#).unwrap();
    let big = Value::BigInt(vec![255, 255, 255, 255, 255, 255, 255, 255, 0]);
    let list = Value::List(vec![Value::Int(1), Value::Float(-2.5), big]);
    assert_eq!(back, Value::Dict(vec![(Value::Str("a".into()), list)]));
}

/// Plain data of every kind, as Python could have put it.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::None),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Int),
        prop::collection::vec(any::<u8>(), 0..40)
            .prop_map(|bytes| Value::int_from_le_bytes(&bytes)),
        any::<f64>().prop_filter("equal to itself", |f| !f.is_nan()).prop_map(Value::Float),
        any::<String>().prop_map(Value::Str),
        // Python 2 has one type for ASCII text and bytes.
        prop::collection::vec(any::<u8>(), 0..300).prop_map(|mut bytes| {
            bytes.push(0xff);
            Value::Bytes(bytes)
        }),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(|mut bytes| {
            bytes.push(0xff);
            Value::ByteArray(bytes)
        }),
    ];
    leaf.prop_recursive(4, 64, 8, |inner| {
        let items = prop::collection::vec(inner.clone(), 0..8);
        prop_oneof![
            items.clone().prop_map(Value::List),
            items.clone().prop_map(Value::Tuple),
            items.clone().prop_map(Value::Set),
            items.prop_map(Value::FrozenSet),
            prop::collection::vec((inner.clone(), inner), 0..8).prop_map(Value::Dict),
        ]
    })
}

proptest! {
    #[test]
    fn a_value_of_any_kind_comes_back_as_it_went(value in any_value()) {
        check(value);
    }

    #[test]
    fn a_damaged_pickle_is_read_or_refused(
        value in any_value(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = pickle(&value, Dialect::Python3).standalone().to_vec();
        for (index, byte) in damage {
            *index.get_mut(&mut bytes) = byte;
        }
        let limits = Limits { values_max: 10_000, ..Limits::default() };
        if let Ok(value) = decode(&bytes, &limits) {
            let _read: Result<Task, _> = from_value(value.clone());
            // What can be read can be written, unless it is an object, and then reads the same.
            if let Ok(payload) = to_payload(&value, Dialect::Python3) {
                let again = payload.value(&limits).unwrap();
                prop_assert_eq!(again.to_string(), value.to_string());
            }
        }
    }
}
