//! Rust values to pickles that every Python loads.
//!
//! The opcodes are those of protocol 2, which Python 2.7 to 3.15 read, without a memo; only what
//! protocol 2 has no form for (`bytes`, `set`) takes a later one. Nothing here looks at Python
//! classes: a struct becomes a `dict` of its fields.

use bytes::Bytes;
use serde::ser::{self, Serialize};

use super::opcode::Opcode;
use super::value::{BIG_INT, BYTE_ARRAY, FROZEN_SET, SET};
use super::{DataError, Payload};

/// Items between two marks; CPython's own batch, which bounds its reader's stack.
const BATCH_LEN: usize = 1000;

/// Which Python will read what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dialect {
    /// Python 2.7: bytes are its `str`.
    Python2,
    /// Python 3: bytes are `bytes`, which needs pickle protocol 3.
    #[default]
    Python3,
}

/// Pickles `value` as plain data.
///
/// | Rust | Python |
/// |---|---|
/// | `bool`, integers of any width, `f32`, `f64` | `bool`, `int`, `float` |
/// | `str`, `String`, `char` | `str` (Python 2: `unicode`) |
/// | serde bytes (not `Vec<u8>`, which is a list of numbers) | `bytes` (Python 2: `str`) |
/// | `Option` | `None` or the value |
/// | `()`, unit structs | `None` |
/// | `Vec`, slices, sets | `list` |
/// | tuples, arrays, tuple structs | `tuple` |
/// | newtype structs | what they hold |
/// | maps; structs | `dict`; a `dict` by field name |
/// | enums | the variant's name, or a `dict` from it to the content |
///
/// # Errors
///
/// [`DataError`] when the value cannot be written: its own `Serialize` fails, or a text is over
/// 4 GiB long.
pub fn to_payload<T: Serialize + ?Sized>(
    value: &T,
    dialect: Dialect,
) -> Result<Payload, DataError> {
    let mut pickler = Pickler { out: Vec::new(), dialect, protocol: 2, bytes_are_an_int: false };
    value.serialize(&mut pickler)?;
    let Pickler { out, protocol, .. } = pickler;
    Ok(Payload::pickle(protocol, Bytes::from(out)))
}

/// Writes opcodes for what serde hands it.
pub(in crate::wire) struct Pickler {
    out: Vec<u8>,
    dialect: Dialect,
    /// Lowest protocol that has all opcodes written so far.
    protocol: u8,
    /// The next bytes are an `int` in two's complement, little-endian.
    bytes_are_an_int: bool,
}

impl Pickler {
    fn op(&mut self, opcode: Opcode) {
        self.out.push(opcode as u8);
    }

    fn int(&mut self, number: i128) {
        if let Ok(byte) = u8::try_from(number) {
            self.op(Opcode::BinInt1);
            self.out.push(byte);
        } else if let Ok(short) = u16::try_from(number) {
            self.op(Opcode::BinInt2);
            self.out.extend(short.to_le_bytes());
        } else if let Ok(int) = i32::try_from(number) {
            self.op(Opcode::BinInt);
            self.out.extend(int.to_le_bytes());
        } else {
            self.long(&number.to_le_bytes());
        }
    }

    /// An `int` from its two's complement, little-endian.
    fn long(&mut self, le_bytes: &[u8]) {
        let bytes = super::value::shortest(le_bytes);
        self.counted(Opcode::Long1, Opcode::Long4, bytes);
    }

    /// `bytes` behind their count, in the short form if they are few.
    fn counted(&mut self, short: Opcode, long: Opcode, bytes: &[u8]) {
        match u8::try_from(bytes.len()) {
            Ok(len) => self.out.extend([short as u8, len]),
            Err(_) => {
                self.op(long);
                // Every long form used here counts with four bytes; callers checked for more.
                self.out.extend(bytes.len().to_le_bytes().into_iter().take(4));
            }
        }
        self.out.extend_from_slice(bytes);
    }

    fn text(&mut self, text: &str) -> Result<(), DataError> {
        let len = u32::try_from(text.len())
            .map_err(|_| DataError::new(format!("text of {} bytes is too long", text.len())))?;
        self.op(Opcode::BinUnicode);
        self.out.extend(len.to_le_bytes());
        self.out.extend_from_slice(text.as_bytes());
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), DataError> {
        let (short, long, len_max) = match self.dialect {
            Dialect::Python2 => (Opcode::ShortBinString, Opcode::BinString, i32::MAX as u64),
            Dialect::Python3 => (Opcode::ShortBinBytes, Opcode::BinBytes, u64::from(u32::MAX)),
        };
        if bytes.len() as u64 > len_max {
            return Err(DataError::new(format!("{} bytes are too long", bytes.len())));
        }
        if self.dialect == Dialect::Python3 {
            self.needs(3);
        }
        self.counted(short, long, bytes);
        Ok(())
    }

    fn needs(&mut self, protocol: u8) {
        self.protocol = self.protocol.max(protocol);
    }

    /// Names a builtin type where the dialect looks for it. Python 3 maps the old module's name
    /// only in protocols below 3.
    fn builtin(&mut self, name: &str) {
        let module = match self.dialect {
            Dialect::Python2 => "__builtin__",
            Dialect::Python3 => "builtins",
        };
        self.op(Opcode::Global);
        for line in [module, name] {
            self.out.extend_from_slice(line.as_bytes());
            self.out.push(b'\n');
        }
    }

    /// Runs `content` as the argument of a builtin type.
    fn built(
        &mut self,
        name: &str,
        content: impl FnOnce(&mut Self) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        if self.dialect == Dialect::Python3 {
            self.needs(3);
        }
        self.builtin(name);
        content(self)?;
        self.op(Opcode::Tuple1);
        self.op(Opcode::Reduce);
        Ok(())
    }

    /// Opens `{name: …}` around the content of an enum's variant.
    fn open_variant(&mut self, name: &str) -> Result<(), DataError> {
        self.op(Opcode::EmptyDict);
        self.text(name)
    }

    fn close_variant(&mut self) {
        self.op(Opcode::SetItem);
    }
}

impl<'a> ser::Serializer for &'a mut Pickler {
    type Ok = ();
    type Error = DataError;
    type SerializeSeq = Batches<'a>;
    type SerializeTuple = Tuple<'a>;
    type SerializeTupleStruct = Tuple<'a>;
    type SerializeTupleVariant = Tuple<'a>;
    type SerializeMap = Batches<'a>;
    type SerializeStruct = Batches<'a>;
    type SerializeStructVariant = Batches<'a>;

    /// Addresses, times and the like are texts in Python programs too.
    fn is_human_readable(&self) -> bool {
        !self.bytes_are_an_int
    }

    fn serialize_bool(self, v: bool) -> Result<(), DataError> {
        self.op(if v { Opcode::NewTrue } else { Opcode::NewFalse });
        Ok(())
    }

    fn serialize_i8(self, v: i8) -> Result<(), DataError> {
        self.serialize_i128(v.into())
    }

    fn serialize_i16(self, v: i16) -> Result<(), DataError> {
        self.serialize_i128(v.into())
    }

    fn serialize_i32(self, v: i32) -> Result<(), DataError> {
        self.serialize_i128(v.into())
    }

    fn serialize_i64(self, v: i64) -> Result<(), DataError> {
        self.serialize_i128(v.into())
    }

    fn serialize_i128(self, v: i128) -> Result<(), DataError> {
        self.int(v);
        Ok(())
    }

    fn serialize_u8(self, v: u8) -> Result<(), DataError> {
        self.serialize_i128(v.into())
    }

    fn serialize_u16(self, v: u16) -> Result<(), DataError> {
        self.serialize_i128(v.into())
    }

    fn serialize_u32(self, v: u32) -> Result<(), DataError> {
        self.serialize_i128(v.into())
    }

    fn serialize_u64(self, v: u64) -> Result<(), DataError> {
        self.serialize_i128(v.into())
    }

    fn serialize_u128(self, v: u128) -> Result<(), DataError> {
        match i128::try_from(v) {
            Ok(number) => self.int(number),
            Err(_) => self.long(&[v.to_le_bytes().as_slice(), &[0]].concat()),
        }
        Ok(())
    }

    fn serialize_f32(self, v: f32) -> Result<(), DataError> {
        self.serialize_f64(v.into())
    }

    fn serialize_f64(self, v: f64) -> Result<(), DataError> {
        self.op(Opcode::BinFloat);
        self.out.extend(v.to_be_bytes());
        Ok(())
    }

    fn serialize_char(self, v: char) -> Result<(), DataError> {
        self.text(v.encode_utf8(&mut [0; 4]))
    }

    fn serialize_str(self, v: &str) -> Result<(), DataError> {
        self.text(v)
    }

    fn serialize_bytes(self, v: &[u8]) -> Result<(), DataError> {
        if self.bytes_are_an_int {
            self.long(v);
            return Ok(());
        }
        self.bytes(v)
    }

    fn serialize_none(self) -> Result<(), DataError> {
        self.serialize_unit()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), DataError> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), DataError> {
        self.op(Opcode::None);
        Ok(())
    }

    fn serialize_unit_struct(self, _name: &'static str) -> Result<(), DataError> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
    ) -> Result<(), DataError> {
        self.text(variant)
    }

    /// Transparent, except for the Python types that serde has no word for: `Value` marks them
    /// by name.
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<(), DataError> {
        match name {
            SET => self.built("set", |this| value.serialize(this)),
            FROZEN_SET => self.built("frozenset", |this| value.serialize(this)),
            BYTE_ARRAY => self.built("bytearray", |this| value.serialize(this)),
            BIG_INT => {
                self.bytes_are_an_int = true;
                let written = value.serialize(&mut *self);
                self.bytes_are_an_int = false;
                written
            }
            _ => value.serialize(self),
        }
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), DataError> {
        self.open_variant(variant)?;
        value.serialize(&mut *self)?;
        self.close_variant();
        Ok(())
    }

    fn serialize_seq(self, _len: Option<usize>) -> Result<Batches<'a>, DataError> {
        self.op(Opcode::EmptyList);
        Ok(Batches::new(self, Opcode::Appends))
    }

    fn serialize_tuple(self, len: usize) -> Result<Tuple<'a>, DataError> {
        Ok(Tuple::open(self, len))
    }

    fn serialize_tuple_struct(
        self,
        _name: &'static str,
        len: usize,
    ) -> Result<Tuple<'a>, DataError> {
        Ok(Tuple::open(self, len))
    }

    fn serialize_tuple_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Tuple<'a>, DataError> {
        self.open_variant(variant)?;
        Ok(Tuple { is_variant: true, ..Tuple::open(self, len) })
    }

    fn serialize_map(self, _len: Option<usize>) -> Result<Batches<'a>, DataError> {
        self.op(Opcode::EmptyDict);
        Ok(Batches::new(self, Opcode::SetItems))
    }

    fn serialize_struct(self, _name: &'static str, len: usize) -> Result<Batches<'a>, DataError> {
        self.serialize_map(Some(len))
    }

    fn serialize_struct_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Batches<'a>, DataError> {
        self.open_variant(variant)?;
        Ok(Batches { is_variant: true, ..self.serialize_map(Some(len))? })
    }
}

/// The items of a list or dict, a batch at a time.
pub(in crate::wire) struct Batches<'a> {
    pickler: &'a mut Pickler,
    /// The opcode that takes a batch into its container.
    close: Opcode,
    batch_len: usize,
    is_variant: bool,
}

impl<'a> Batches<'a> {
    fn new(pickler: &'a mut Pickler, close: Opcode) -> Self {
        Self { pickler, close, batch_len: 0, is_variant: false }
    }

    /// Makes room for one more item.
    fn next(&mut self) -> &mut Pickler {
        if self.batch_len == BATCH_LEN {
            self.pickler.op(self.close);
            self.batch_len = 0;
        }
        if self.batch_len == 0 {
            self.pickler.op(Opcode::Mark);
        }
        self.batch_len += 1;
        self.pickler
    }

    fn finish(self) {
        if self.batch_len > 0 {
            self.pickler.op(self.close);
        }
        if self.is_variant {
            self.pickler.close_variant();
        }
    }
}

impl ser::SerializeSeq for Batches<'_> {
    type Ok = ();
    type Error = DataError;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), DataError> {
        value.serialize(self.next())
    }

    fn end(self) -> Result<(), DataError> {
        self.finish();
        Ok(())
    }
}

impl ser::SerializeMap for Batches<'_> {
    type Ok = ();
    type Error = DataError;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), DataError> {
        key.serialize(self.next())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), DataError> {
        value.serialize(&mut *self.pickler)
    }

    fn end(self) -> Result<(), DataError> {
        self.finish();
        Ok(())
    }
}

impl ser::SerializeStruct for Batches<'_> {
    type Ok = ();
    type Error = DataError;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        key: &'static str,
        value: &T,
    ) -> Result<(), DataError> {
        ser::SerializeMap::serialize_entry(self, key, value)
    }

    fn end(self) -> Result<(), DataError> {
        self.finish();
        Ok(())
    }
}

impl ser::SerializeStructVariant for Batches<'_> {
    type Ok = ();
    type Error = DataError;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        key: &'static str,
        value: &T,
    ) -> Result<(), DataError> {
        ser::SerializeMap::serialize_entry(self, key, value)
    }

    fn end(self) -> Result<(), DataError> {
        self.finish();
        Ok(())
    }
}

/// The items of a tuple.
pub(in crate::wire) struct Tuple<'a> {
    pickler: &'a mut Pickler,
    /// The opcode that makes the tuple of its items.
    close: Opcode,
    is_variant: bool,
}

impl<'a> Tuple<'a> {
    fn open(pickler: &'a mut Pickler, len: usize) -> Self {
        let close = match len {
            0 => Opcode::EmptyTuple,
            1 => Opcode::Tuple1,
            2 => Opcode::Tuple2,
            3 => Opcode::Tuple3,
            _ => Opcode::Tuple,
        };
        if close == Opcode::Tuple {
            pickler.op(Opcode::Mark);
        }
        Self { pickler, close, is_variant: false }
    }

    fn item<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), DataError> {
        value.serialize(&mut *self.pickler)
    }

    fn finish(self) {
        self.pickler.op(self.close);
        if self.is_variant {
            self.pickler.close_variant();
        }
    }
}

impl ser::SerializeTuple for Tuple<'_> {
    type Ok = ();
    type Error = DataError;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), DataError> {
        self.item(value)
    }

    fn end(self) -> Result<(), DataError> {
        self.finish();
        Ok(())
    }
}

impl ser::SerializeTupleStruct for Tuple<'_> {
    type Ok = ();
    type Error = DataError;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), DataError> {
        self.item(value)
    }

    fn end(self) -> Result<(), DataError> {
        self.finish();
        Ok(())
    }
}

impl ser::SerializeTupleVariant for Tuple<'_> {
    type Ok = ();
    type Error = DataError;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), DataError> {
        self.item(value)
    }

    fn end(self) -> Result<(), DataError> {
        self.finish();
        Ok(())
    }
}
