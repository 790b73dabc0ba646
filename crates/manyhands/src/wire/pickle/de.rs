//! Plain data from Python to Rust values, as lenient as Python programs expect.

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{self, DeserializeOwned, Error as _, IntoDeserializer, Unexpected, Visitor};
use serde::forward_to_deserialize_any;

use super::value::{ANY, BIG_INT, BYTE_ARRAY, FROZEN_SET, SET, TUPLE};
use super::value_serde::{int128, uint128};
use super::{DataError, Limits, Payload, Value};

/// Reads `payload` as a `T`.
///
/// The counterpart of [`to_payload`](super::to_payload), with Python's indifference where no
/// meaning is lost:
///
/// - a `list`, `tuple`, `set` or `frozenset` is any Rust sequence, tuple or struct of that length;
/// - an `int` is also a float; a float is never an integer, nor is a `bool`;
/// - `bytes` and `bytearray` are serde bytes or a `Vec<u8>`, and text if they are UTF-8;
/// - a `str` is bytes if bytes are asked for, because Python 2 has one type for both;
/// - a `dict` is a map with keys of any type, or a struct if its keys are the fields' names.
///
/// # Errors
///
/// [`DataError`] when the payload is no pickle of plain data, is larger than `limits` allow, or has
/// another shape than `T`; it names what was found and what was expected.
pub fn from_payload<T: DeserializeOwned>(
    payload: &Payload,
    limits: &Limits,
) -> Result<T, DataError> {
    from_value(payload.value(limits)?)
}

/// Turns plain data into a `T`, by the rules of [`from_payload`].
///
/// # Errors
///
/// [`DataError`] when `value` has another shape than `T`.
pub fn from_value<T: DeserializeOwned>(value: Value) -> Result<T, DataError> {
    T::deserialize(value)
}

impl IntoDeserializer<'_, DataError> for Value {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl Value {
    /// Why this value is not what `expected` says.
    fn mismatch(&self, expected: &dyn de::Expected) -> DataError {
        match self {
            Self::Object(object) => DataError::invalid_type(
                Unexpected::Other(&format!("the Python object {object}")),
                expected,
            ),
            Self::BigInt(_) => {
                DataError::invalid_value(Unexpected::Other("an int over 128 bits"), expected)
            }
            other => DataError::invalid_type(other.unexpected(), expected),
        }
    }

    fn unexpected(&self) -> Unexpected<'_> {
        match self {
            Self::None => Unexpected::Other("None"),
            Self::Bool(value) => Unexpected::Bool(*value),
            Self::Int(value) => Unexpected::Signed(*value),
            Self::BigInt(_) => Unexpected::Other("a large int"),
            Self::Float(value) => Unexpected::Float(*value),
            Self::Str(text) => Unexpected::Str(text),
            Self::Bytes(_) => Unexpected::Other("bytes"),
            Self::ByteArray(_) => Unexpected::Other("a bytearray"),
            Self::List(_) => Unexpected::Other("a list"),
            Self::Tuple(_) => Unexpected::Other("a tuple"),
            Self::Dict(_) => Unexpected::Other("a dict"),
            Self::Set(_) => Unexpected::Other("a set"),
            Self::FrozenSet(_) => Unexpected::Other("a frozenset"),
            Self::Object(_) => Unexpected::Other("a Python object"),
        }
    }
}

fn visit_items<'de, V: Visitor<'de>>(items: Vec<Value>, visitor: V) -> Result<V::Value, DataError> {
    let mut items = SeqDeserializer::new(items.into_iter());
    let visited = visitor.visit_seq(&mut items)?;
    items.end().map(|()| visited)
}

fn visit_pairs<'de, V: Visitor<'de>>(
    pairs: Vec<(Value, Value)>,
    visitor: V,
) -> Result<V::Value, DataError> {
    let mut pairs = MapDeserializer::new(pairs.into_iter());
    let visited = visitor.visit_map(&mut pairs)?;
    pairs.end().map(|()| visited)
}

impl<'de> de::Deserializer<'de> for Value {
    type Error = DataError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DataError> {
        match self {
            Self::None => visitor.visit_unit(),
            Self::Bool(value) => visitor.visit_bool(value),
            Self::Int(value) => visitor.visit_i64(value),
            Self::BigInt(ref bytes) => match (int128(bytes), uint128(bytes)) {
                (Some(value), _) => match u64::try_from(value) {
                    Ok(value) => visitor.visit_u64(value),
                    Err(_) => visitor.visit_i128(value),
                },
                (None, Some(value)) => visitor.visit_u128(value),
                (None, None) => Err(self.mismatch(&visitor)),
            },
            Self::Float(value) => visitor.visit_f64(value),
            Self::Str(text) => visitor.visit_string(text),
            Self::Bytes(bytes) | Self::ByteArray(bytes) => visitor.visit_byte_buf(bytes),
            Self::List(items) | Self::Tuple(items) | Self::Set(items) | Self::FrozenSet(items) => {
                visit_items(items, visitor)
            }
            Self::Dict(pairs) => visit_pairs(pairs, visitor),
            Self::Object(_) => Err(self.mismatch(&visitor)),
        }
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DataError> {
        match &self {
            Self::BigInt(bytes) => visitor.visit_f64(nearest_f64(bytes)),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DataError> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DataError> {
        match self {
            Self::Str(text) => visitor.visit_byte_buf(text.into_bytes()),
            other => other.deserialize_any(visitor),
        }
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DataError> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DataError> {
        match self {
            Self::None => visitor.visit_none(),
            some => visitor.visit_some(some),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DataError> {
        match self {
            Self::Bytes(bytes) | Self::ByteArray(bytes) => {
                let mut numbers = SeqDeserializer::new(bytes.into_iter());
                let visited = visitor.visit_seq(&mut numbers)?;
                numbers.end().map(|()| visited)
            }
            other => other.deserialize_any(visitor),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, DataError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, DataError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DataError> {
        if name != ANY {
            return visitor.visit_newtype_struct(self);
        }
        // A `Value` is asked for: what serde has no word for comes under its name.
        let (kind, content) = match self {
            Self::Tuple(items) => (TUPLE, Self::List(items)),
            Self::Set(items) => (SET, Self::List(items)),
            Self::FrozenSet(items) => (FROZEN_SET, Self::List(items)),
            Self::ByteArray(bytes) => (BYTE_ARRAY, Self::Bytes(bytes)),
            Self::BigInt(bytes) => (BIG_INT, Self::Bytes(bytes)),
            other => return other.deserialize_any(visitor),
        };
        visitor.visit_enum(Variant { name: kind.to_owned(), content: Some(content) })
    }

    /// An enum's variant by name, or a `dict` from the name to its content.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DataError> {
        let mut pairs = match self {
            Self::Str(name) => return visitor.visit_enum(Variant { name, content: None }),
            Self::Dict(pairs) => pairs,
            other => return Err(other.mismatch(&"an enum: a str or a dict with one key")),
        };
        match (pairs.pop(), pairs.len()) {
            (Some((Self::Str(name), content)), 0) => {
                visitor.visit_enum(Variant { name, content: Some(content) })
            }
            _ => Err(DataError::new("an enum is a dict with exactly one key, a str".into())),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DataError> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 char str string unit unit_struct map struct
        identifier
    }
}

/// An `int` of any size as a float, as exactly as a float can hold its highest bits.
fn nearest_f64(le_bytes: &[u8]) -> f64 {
    let negative = le_bytes.last().is_some_and(|&high| high >= 0x80);
    let mut float = if negative { -1.0 } else { 0.0 };
    for &byte in le_bytes.iter().rev() {
        float = float * 256.0 + f64::from(byte);
    }
    float
}

/// One variant of an enum and what it holds.
struct Variant {
    name: String,
    content: Option<Value>,
}

impl<'de> de::EnumAccess<'de> for Variant {
    type Error = DataError;
    type Variant = Content;

    fn variant_seed<S: de::DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Content), DataError> {
        let name = seed.deserialize(Value::Str(self.name))?;
        Ok((name, Content(self.content)))
    }
}

struct Content(Option<Value>);

impl Content {
    fn some(self) -> Result<Value, DataError> {
        self.0.ok_or_else(|| DataError::new("this variant of the enum needs a content".into()))
    }
}

impl<'de> de::VariantAccess<'de> for Content {
    type Error = DataError;

    fn unit_variant(self) -> Result<(), DataError> {
        match self.0 {
            None | Some(Value::None) => Ok(()),
            Some(content) => Err(content.mismatch(&"a variant without content")),
        }
    }

    fn newtype_variant_seed<S: de::DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<S::Value, DataError> {
        seed.deserialize(self.some()?)
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, DataError> {
        de::Deserializer::deserialize_tuple(self.some()?, len, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DataError> {
        de::Deserializer::deserialize_map(self.some()?, visitor)
    }
}
