//! Where a task stands in a priority queue, as Python's `<` would place its object.
//!
//! A [`Key`] holds what of an object Python can compare without running code of the object's own:
//! numbers, text, bytes, and tuples and lists of these. Everything else is *opaque*, and never
//! built. Keys have a total order, so that a tree can hold them; [`Key::check_against`] says where
//! Python has none.

use std::hash::{DefaultHasher, Hasher};

use manyhands::wire::pickle::{Limits, Outline, Payload, Value};

use super::number::Number;

/// An object's place in the order.
///
/// Classes that Python does not compare with each other follow one another, and opaque objects
/// follow by type and content: a place that means nothing, but is always the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Number(Number),
    Bytes(Box<[u8]>),
    Str(Box<str>),
    List(Box<[Self]>),
    Tuple(Box<[Self]>),
    Opaque(Box<Opaque>),
}

/// An object known by its type and a digest of its opcodes: what was pickled in the same way is
/// equal, and all else is taken to differ.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Opaque {
    kind: Box<str>,
    digest: u64,
}

/// The order of a priority queue depends on two objects that the server cannot compare.
///
/// Either Python cannot either (`'<' not supported between instances of 'int' and 'str'`), or it
/// would have to run a method of the object's class, which the server never does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'<' not supported between instances of '{new}' and '{queued}' (an object's own __lt__ is \
     never run by the server: put a tuple with a plain number or text in front, such as \
     (priority, count, item))"
)]
#[non_exhaustive]
pub struct OrderError {
    /// Python's name of the type in the new task.
    pub new: String,
    /// Python's name of the type that it meets in the queue.
    pub queued: String,
}

impl Key {
    /// The key of a pickled object, in time proportional to its length. What of it cannot be read
    /// within the usual limits is opaque.
    pub(super) fn of(payload: &Payload) -> Self {
        Self::from(payload.outline(&Limits::default()))
    }

    /// The key of a plain number.
    pub(super) fn of_int(number: i64) -> Self {
        Self::Number(Number::Int(number))
    }

    /// Whether Python could tell which of two keys is less, or need not because they are equal.
    ///
    /// # Errors
    ///
    /// Names the types of the first two elements that differ if they do not compare.
    pub(super) fn check_against(&self, queued: &Self) -> Result<(), OrderError> {
        match (self, queued) {
            (Self::Tuple(new), Self::Tuple(queued)) | (Self::List(new), Self::List(queued)) => {
                let differing = new.iter().zip(queued).find(|(new, queued)| new != queued);
                differing.map_or(Ok(()), |(new, queued)| new.check_against(queued))
            }
            (Self::Number(_), Self::Number(_))
            | (Self::Str(_), Self::Str(_))
            | (Self::Bytes(_), Self::Bytes(_)) => Ok(()),
            _ if self == queued => Ok(()),
            _ => Err(OrderError { new: self.kind().to_owned(), queued: queued.kind().to_owned() }),
        }
    }

    fn opaque(kind: &str, opcodes: &[u8]) -> Self {
        // Two objects that collide by chance or on purpose only lose the TypeError.
        let mut hasher = DefaultHasher::new();
        hasher.write(opcodes);
        Self::Opaque(Box::new(Opaque { kind: kind.into(), digest: hasher.finish() }))
    }

    /// Bytes that the key holds on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        match self {
            Self::Number(Number::Big(bytes)) | Self::Bytes(bytes) => bytes.len(),
            Self::Number(Number::Int(_) | Number::Float(_)) => 0,
            Self::Str(text) => text.len(),
            Self::List(items) | Self::Tuple(items) => {
                items.iter().map(|item| size_of::<Self>() + item.heap_bytes()).sum()
            }
            Self::Opaque(opaque) => size_of::<Opaque>() + opaque.kind.len(),
        }
    }

    fn kind(&self) -> &str {
        match self {
            Self::Number(number) => number.kind(),
            Self::Bytes(_) => "bytes",
            Self::Str(_) => "str",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Opaque(opaque) => &opaque.kind,
        }
    }
}

impl From<Outline<'_>> for Key {
    fn from(outline: Outline<'_>) -> Self {
        match outline {
            Outline::Atom(value) => Self::from(value),
            Outline::List(items) => Self::List(items.into_iter().map(Self::from).collect()),
            Outline::Tuple(items) => Self::Tuple(items.into_iter().map(Self::from).collect()),
            Outline::Opaque { kind, opcodes } => Self::opaque(&kind, opcodes),
            _ => Self::opaque("object", &[]),
        }
    }
}

impl From<Value> for Key {
    fn from(value: Value) -> Self {
        match value {
            Value::Bool(value) => Self::Number(Number::Int(value.into())),
            Value::Int(value) => Self::Number(Number::Int(value)),
            Value::BigInt(bytes) => Self::Number(Number::Big(bytes.into())),
            Value::Float(value) => Self::Number(Number::Float(value)),
            Value::Str(text) => Self::Str(text.into()),
            // Python compares the two with each other.
            Value::Bytes(bytes) | Value::ByteArray(bytes) => Self::Bytes(bytes.into()),
            _ => Self::opaque("object", &[]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;
    use std::collections::BTreeSet;

    use bytes::Bytes;
    use manyhands::wire::pickle::{Dialect, to_payload};
    use proptest::prelude::*;

    use super::*;

    /// The key of a value as it is when it was pickled.
    fn key(value: &Value) -> Key {
        Key::of(&to_payload(value, Dialect::Python3).unwrap())
    }

    fn key_of(object: &[u8]) -> Key {
        Key::of(&Payload::pickle(4, Bytes::copy_from_slice(object)))
    }

    fn str(text: &str) -> Value {
        Value::Str(text.to_owned())
    }

    fn bytes(bytes: &[u8]) -> Value {
        Value::Bytes(bytes.to_vec())
    }

    fn int(value: i64) -> Value {
        Value::Int(value)
    }

    fn tuple<const N: usize>(items: [Value; N]) -> Value {
        Value::Tuple(items.into())
    }

    fn list<const N: usize>(items: [Value; N]) -> Value {
        Value::List(items.into())
    }

    fn dict(text: &str) -> Value {
        Value::Dict(vec![(str(text), Value::None)])
    }

    /// `(1, 1, object)`, the last one spelled by the given opcodes.
    fn job(priority: u8, object: &[u8]) -> Vec<u8> {
        [&[b'K', priority, b'K', 1], object, b"\x87"].concat()
    }

    /// Checks how Python orders two objects; the error names the types that do not compare.
    fn check(a: Value, b: Value, expected: Result<Ordering, (&str, &str)>) {
        check_keys(&key(&a), &key(&b), expected);
    }

    fn check_keys(a: &Key, b: &Key, expected: Result<Ordering, (&str, &str)>) {
        let types = |error: OrderError| (error.new, error.queued);
        let found = a.check_against(b).map(|()| a.cmp(b)).map_err(types);
        assert_eq!(found, expected.map_err(|(a, b)| (a.to_owned(), b.to_owned())), "{a:?} {b:?}");
        let back = b.check_against(a).map(|()| b.cmp(a).reverse()).map_err(types);
        assert_eq!(back, expected.map_err(|(a, b)| (b.to_owned(), a.to_owned())), "{b:?} {a:?}");
    }

    #[test]
    fn numbers_of_all_types_compare() {
        check(Value::Bool(true), int(1), Ok(Ordering::Equal));
        check(Value::Bool(true), Value::Float(1.0), Ok(Ordering::Equal));
        check(Value::Bool(false), Value::Float(0.5), Ok(Ordering::Less));
        check(Value::BigInt(vec![0, 0, 0, 0, 0, 0, 0, 0, 1]), int(i64::MAX), Ok(Ordering::Greater));
        check(Value::Float(f64::NAN), Value::Float(f64::INFINITY), Ok(Ordering::Greater));
        check(Value::Float(f64::NAN), Value::Float(f64::NAN), Ok(Ordering::Equal));
    }

    #[test]
    fn text_compares_with_text_and_bytes_with_bytes() {
        check(str("a"), str("b"), Ok(Ordering::Less));
        check(str("\u{ffff}"), str("\u{10000}"), Ok(Ordering::Less));
        check(bytes(b"a"), bytes(b"\xff"), Ok(Ordering::Less));
        check(bytes(b"a"), Value::ByteArray(b"a".to_vec()), Ok(Ordering::Equal));
        check(bytes(b"a"), str("a"), Err(("bytes", "str")));
        check(int(1), str("a"), Err(("int", "str")));
        check(Value::Float(1.0), bytes(b"a"), Err(("float", "bytes")));
    }

    #[test]
    fn tuples_and_lists_compare_element_by_element() {
        check(tuple([int(1)]), tuple([int(1), int(0)]), Ok(Ordering::Less));
        check(tuple([]), tuple([dict("a")]), Ok(Ordering::Less));
        check(tuple([int(1), str("b")]), tuple([int(1), str("a")]), Ok(Ordering::Greater));
        check(tuple([int(1), str("b")]), tuple([int(2), int(0)]), Ok(Ordering::Less));
        check(tuple([Value::Bool(true), int(1)]), tuple([int(1), int(2)]), Ok(Ordering::Less));
        check(tuple([int(1), str("b")]), tuple([int(1), int(2)]), Err(("str", "int")));
        check(list([list([int(1)])]), list([list([int(2)])]), Ok(Ordering::Less));
        check(list([int(1)]), tuple([int(1)]), Err(("list", "tuple")));
        check(tuple([list([int(1)])]), tuple([tuple([int(1)])]), Err(("list", "tuple")));
    }

    #[test]
    fn an_opaque_element_matters_only_when_the_order_depends_on_it() {
        check(tuple([int(1), dict("a")]), tuple([int(2), dict("b")]), Ok(Ordering::Less));
        check(tuple([int(1), dict("a")]), tuple([int(1), dict("a")]), Ok(Ordering::Equal));
        check(tuple([int(1), dict("a")]), tuple([int(1), dict("b")]), Err(("dict", "dict")));
        check(Value::None, Value::None, Ok(Ordering::Equal));
        check(Value::None, int(0), Err(("NoneType", "int")));
        check(Value::Set(vec![int(1)]), Value::FrozenSet(vec![int(2)]), Err(("set", "frozenset")));
        let job = |state| key_of(&[&b"cm\nOuter.Job\n)\x81K"[..], &[state], b"b"].concat());
        check_keys(&job(1), &job(2), Err(("Job", "Job")));
        check_keys(&job(1), &job(1), Ok(Ordering::Equal));
        check_keys(&job(1), &key(&int(2)), Err(("Job", "int")));
    }

    #[test]
    fn an_element_that_cannot_be_read_is_opaque_alone() {
        let recursive = b"cm\nNode\n)\x81\x94}X\x01\0\0\0nh\0sb";
        let surrogate = b"X\x03\0\0\0\xed\xa0\xbd";
        let huge = [&b"]("[..], &b"N".repeat((1 << 20) + 1), b"e"].concat();
        let deep = [&b"]".repeat(1000)[..], &b"a".repeat(999)].concat();
        let many = [&b"N"[..], &b"\x94".repeat((1 << 20) + 1)].concat();
        for object in [&recursive[..], surrogate, &huge, &deep, &many] {
            let (low, high) = (key_of(&job(1, object)), key_of(&job(2, object)));
            check_keys(&low, &high, Ok(Ordering::Less));
            check_keys(&low, &low.clone(), Ok(Ordering::Equal));
        }
        let (node, other) = (key_of(&job(1, recursive)), key_of(&job(1, b"cm\nNode\n)\x81}b")));
        check_keys(&node, &other, Err(("Node", "Node")));
    }

    #[test]
    fn opaque_elements_are_equal_if_they_were_pickled_in_the_same_way() {
        let one = |value| Value::Dict(vec![(str("a"), value), (str("b"), int(2))]);
        check(one(int(1)), one(int(1)), Ok(Ordering::Equal));
        check(one(int(1)), one(int(3)), Err(("dict", "dict")));
        // Python finds these equal, too; that takes building them.
        let turned = Value::Dict(vec![(str("b"), int(2)), (str("a"), int(1))]);
        check(one(int(1)), turned, Err(("dict", "dict")));
        check(one(int(1)), one(Value::Float(1.0)), Err(("dict", "dict")));
    }

    #[test]
    fn an_opaque_element_that_refers_to_another_is_known_by_both() {
        let pair = |text: &[u8]| key_of(&[b"}U\x01", text, b"q\0Ns}h\0Ns\x86"].concat());
        check_keys(&pair(b"a"), &pair(b"a"), Ok(Ordering::Equal));
        let last = |text: &[u8]| key_of(&[b"K\x01U\x01", text, b"q\x000}h\0Ns\x86"].concat());
        check_keys(&last(b"a"), &last(b"b"), Err(("dict", "dict")));
    }

    #[test]
    fn the_error_reads_as_pythons_and_says_what_to_do() {
        let error = key(&dict("a")).check_against(&key(&dict("b"))).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("'<' not supported between instances of 'dict' and 'dict'"));
        assert!(text.contains("(priority, count, item)"), "{text}");
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::None),
            any::<bool>().prop_map(Value::Bool),
            (-2i64..3).prop_map(Value::Int),
            prop_oneof![Just(f64::NAN), Just(0.5), Just(1.0), Just(-1e300)].prop_map(Value::Float),
            "[ab]{0,2}".prop_map(Value::Str),
            prop::collection::vec(0u8..2, 0..2).prop_map(Value::Bytes),
            "[ab]".prop_map(|text| dict(&text)),
        ];
        leaf.prop_recursive(3, 12, 3, |inner| {
            let items = prop::collection::vec(inner, 0..3);
            prop_oneof![
                3 => items.clone().prop_map(Value::Tuple),
                1 => items.prop_map(Value::List),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_order_is_total(a in values(), b in values(), c in values()) {
            let (a, b, c) = (key(&a), key(&b), key(&c));
            prop_assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
            prop_assert_eq!(a.cmp(&b).is_eq(), a == b);
            prop_assert_eq!(a.check_against(&b).is_ok(), b.check_against(&a).is_ok());
            let mut keys = [a, b, c];
            keys.sort();
            prop_assert!(keys[0] <= keys[2]);
        }

        #[test]
        fn two_neighbours_tell_whether_all_compare(values in prop::collection::vec(values(), 1..40)) {
            let mut keys = BTreeSet::new();
            for key in values.iter().map(key) {
                let neighbours = [keys.range(..&key).next_back(), keys.range(&key..).next()];
                let by_two = neighbours.into_iter().flatten().all(|at| key.check_against(at).is_ok());
                let by_all = keys.iter().all(|at| key.check_against(at).is_ok());
                prop_assert_eq!(by_two, by_all);
                if by_all {
                    keys.insert(key);
                }
            }
        }
    }
}
