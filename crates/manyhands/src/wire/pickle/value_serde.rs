//! [`Value`] as a serde type of its own, so that a queue can hold plain data of any kind.
//!
//! Through our own pickles every kind survives the way there and back; through another format
//! (JSON, say) sets and tuples become sequences, bytes a sequence of numbers, and an `int` over 128
//! bits a hexadecimal text. An [`Object`](super::Object) has no serde form: that is an error.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, EnumAccess, MapAccess, SeqAccess, VariantAccess};
use serde::ser::{self, Serialize, SerializeMap, SerializeTuple, Serializer};

use super::Value;
use super::value::{ANY, BIG_INT, BYTE_ARRAY, FROZEN_SET, SET, TUPLE};

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Int(value) => serializer.serialize_i64(*value),
            Self::BigInt(bytes) => match (int128(bytes), uint128(bytes)) {
                (Some(value), _) => serializer.serialize_i128(value),
                (None, Some(value)) => serializer.serialize_u128(value),
                (None, None) => serializer.serialize_newtype_struct(BIG_INT, &Huge(bytes)),
            },
            Self::Float(value) => serializer.serialize_f64(*value),
            Self::Str(text) => serializer.serialize_str(text),
            Self::Bytes(bytes) => serializer.serialize_bytes(bytes),
            Self::ByteArray(bytes) => {
                serializer.serialize_newtype_struct(BYTE_ARRAY, &Plain(bytes))
            }
            Self::List(items) => serializer.collect_seq(items),
            Self::Tuple(items) => {
                let mut tuple = serializer.serialize_tuple(items.len())?;
                items.iter().try_for_each(|item| tuple.serialize_element(item))?;
                tuple.end()
            }
            Self::Dict(pairs) => {
                let mut map = serializer.serialize_map(Some(pairs.len()))?;
                pairs.iter().try_for_each(|(key, value)| map.serialize_entry(key, value))?;
                map.end()
            }
            Self::Set(items) => serializer.serialize_newtype_struct(SET, items),
            Self::FrozenSet(items) => serializer.serialize_newtype_struct(FROZEN_SET, items),
            Self::Object(object) => Err(ser::Error::custom(format_args!(
                "the Python object {object} is not plain data"
            ))),
        }
    }
}

/// The bytes of a `bytearray`.
struct Plain<'a>(&'a [u8]);

impl Serialize for Plain<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

/// An `int` over 128 bits: two's complement, little-endian.
struct Huge<'a>(&'a [u8]);

impl Serialize for Huge<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_str(&super::value::hexadecimal(self.0))
        } else {
            serializer.serialize_bytes(self.0)
        }
    }
}

/// The number, if it fits.
pub(super) fn int128(le_bytes: &[u8]) -> Option<i128> {
    let negative = le_bytes.last().is_some_and(|&high| high >= 0x80);
    let mut word = [if negative { 0xff } else { 0 }; 16];
    word.get_mut(..le_bytes.len())?.copy_from_slice(le_bytes);
    Some(i128::from_le_bytes(word))
}

/// The number, if it fits and is not negative.
pub(super) fn uint128(le_bytes: &[u8]) -> Option<u128> {
    let magnitude = match le_bytes {
        [magnitude @ .., 0] => magnitude,
        [.., high] if *high >= 0x80 => return None,
        magnitude => magnitude,
    };
    let mut word = [0; 16];
    word.get_mut(..magnitude.len())?.copy_from_slice(magnitude);
    Some(u128::from_le_bytes(word))
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_newtype_struct(ANY, Visitor)
    }
}

struct Visitor;

impl<'de> de::Visitor<'de> for Visitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("plain data")
    }

    /// How other formats pass over the name by which ours knows a [`Value`].
    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<Value, D::Error> {
        inner.deserialize_any(self)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::None)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::None)
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<Value, D::Error> {
        Value::deserialize(inner)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Int(v))
    }

    fn visit_u64<E: de::Error>(self, v: u64) -> Result<Value, E> {
        self.visit_i128(v.into())
    }

    fn visit_i128<E>(self, v: i128) -> Result<Value, E> {
        Ok(Value::int_from_le_bytes(&v.to_le_bytes()))
    }

    fn visit_u128<E>(self, v: u128) -> Result<Value, E> {
        Ok(Value::int_from_le_bytes(&[v.to_le_bytes().as_slice(), &[0]].concat()))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Value::Float(v))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::Str(v.to_owned()))
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::Str(v))
    }

    fn visit_bytes<E>(self, v: &[u8]) -> Result<Value, E> {
        Ok(Value::Bytes(v.to_vec()))
    }

    fn visit_byte_buf<E>(self, v: Vec<u8>) -> Result<Value, E> {
        Ok(Value::Bytes(v))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut dict = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            dict.push(entry);
        }
        Ok(Value::Dict(dict))
    }

    /// What our own pickles hand over of the kinds that serde does not know.
    fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<Value, A::Error> {
        let (kind, content) = access.variant::<String>()?;
        match kind.as_str() {
            TUPLE => content.newtype_variant().map(Value::Tuple),
            SET => content.newtype_variant().map(Value::Set),
            FROZEN_SET => content.newtype_variant().map(Value::FrozenSet),
            BYTE_ARRAY => content.newtype_variant().map(Value::ByteArray),
            BIG_INT => content.newtype_variant().map(Value::BigInt),
            _ => Err(de::Error::custom("an enum is not plain data")),
        }
    }
}
