//! Plain data out of a pickle: what a manager's client may look at.
//!
//! Nothing is executed or resolved: a pickle is replayed on a stack of *nodes* ([`Reader`]), then
//! the node that is left becomes a [`Value`] ([`Builder`]). Nodes refer to each other by number, so
//! a memo reference costs nothing until it is built, and each building of it counts against
//! [`Limits`]: a small pickle cannot grow into a large value.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use super::lines::{quoted, raw_unicode_escape};
use super::opcode::{Op, Opcode, Opcodes};
use super::{Limits, Payload, PickleError};

/// Most decimal digits of an `int` that is written as text. CPython's own bound since 3.11.
const DIGITS_MAX: usize = 4300;
/// Longest name of a module, class or function, in bytes: objects repeat the names of their parts.
const NAME_LEN_MAX: usize = 4 << 10;

/// Plain Python data; everything that would need code to build is an inert [`Object`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// `None`
    None,
    /// `bool`
    Bool(bool),
    /// `int` that fits 64 bits
    Int(i64),
    /// Larger `int`: two's complement, little-endian, shortest form.
    BigInt(Vec<u8>),
    /// `float`
    Float(f64),
    /// `str`; also a Python 2 byte string that is ASCII
    Str(String),
    /// `bytes`; also a Python 2 byte string that is not ASCII
    Bytes(Vec<u8>),
    /// `bytearray`
    ByteArray(Vec<u8>),
    /// `list`
    List(Vec<Self>),
    /// `tuple`
    Tuple(Vec<Self>),
    /// `dict`, in its order
    Dict(Vec<(Self, Self)>),
    /// `set`
    Set(Vec<Self>),
    /// `frozenset`
    FrozenSet(Vec<Self>),
    /// An instance, class or function: named, never resolved.
    Object(Box<Object>),
}

/// What a pickle says of an object that only its own code could build.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Module of the class or function, as the pickle names it.
    pub module: String,
    /// Name inside the module.
    pub name: String,
    /// Arguments it was to be called with, keyword arguments as a dict behind them; `None` for the
    /// class or function itself.
    pub args: Option<Vec<Value>>,
    /// State, list items and the like that were to be applied afterwards.
    pub state: Vec<Value>,
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.module, self.name)
    }
}

/// Shows the value as Python's `repr` would; an object as the call that would build it, and what
/// would then be applied to it.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Bool(true) => f.write_str("True"),
            Self::Bool(false) => f.write_str("False"),
            Self::Int(number) => write!(f, "{number}"),
            Self::BigInt(bytes) => f.write_str(&hexadecimal(bytes)),
            Self::Float(number) => write!(f, "{number:?}"),
            Self::Str(text) => write!(f, "'{}'", text.escape_debug()),
            Self::Bytes(bytes) => write!(f, "b'{}'", bytes.escape_ascii()),
            Self::ByteArray(bytes) => write!(f, "bytearray(b'{}')", bytes.escape_ascii()),
            Self::List(items) => write!(f, "[{}]", Joined(items)),
            Self::Tuple(items) if items.len() == 1 => write!(f, "({},)", Joined(items)),
            Self::Tuple(items) => write!(f, "({})", Joined(items)),
            Self::Dict(pairs) => {
                f.write_str("{")?;
                for (i, (key, value)) in pairs.iter().enumerate() {
                    let comma = if i > 0 { ", " } else { "" };
                    write!(f, "{comma}{key}: {value}")?;
                }
                f.write_str("}")
            }
            Self::Set(items) if items.is_empty() => f.write_str("set()"),
            Self::Set(items) => write!(f, "{{{}}}", Joined(items)),
            Self::FrozenSet(items) => write!(f, "frozenset([{}])", Joined(items)),
            Self::Object(object) => match &object.args {
                Some(args) if object.state.is_empty() => {
                    write!(f, "{object}({})", Joined(args))
                }
                Some(args) => {
                    write!(f, "{object}({}) with {}", Joined(args), Joined(&object.state))
                }
                None => write!(f, "{object}"),
            },
        }
    }
}

/// Values with commas between them.
struct Joined<'a>(&'a [Value]);

impl fmt::Display for Joined<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, value) in self.0.iter().enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            write!(f, "{comma}{value}")?;
        }
        Ok(())
    }
}

impl Value {
    /// Reads the one value that a run of opcodes leaves.
    pub(super) fn of_opcodes(opcodes: Opcodes<'_>, limits: &Limits) -> Result<Self, PickleError> {
        let len = opcodes.len();
        let mut reader = Reader::new(limits);
        for op in opcodes {
            reader.apply(op?)?;
        }
        reader.finish(len)
    }

    /// An `int` of any size from its two's complement, little-endian.
    #[must_use]
    pub fn int_from_le_bytes(bytes: &[u8]) -> Self {
        let bytes = shortest(bytes);
        let sign = if is_negative(bytes) { 0xff } else { 0 };
        let mut word = [sign; 8];
        match word.get_mut(..bytes.len()) {
            Some(low) => {
                low.copy_from_slice(bytes);
                Self::Int(i64::from_le_bytes(word))
            }
            None => Self::BigInt(bytes.to_vec()),
        }
    }
}

impl Payload {
    /// Reads the payload as plain data, within `limits`.
    ///
    /// # Errors
    ///
    /// [`PickleError`] when the bytes are not a pickle, a limit is reached, or the data contains
    /// itself. Offsets count from the start of [`bytes`](Self::bytes).
    pub fn value(&self, limits: &Limits) -> Result<Value, PickleError> {
        Value::of_opcodes(Opcodes::new(&self.bytes), limits)
    }
}

fn malformed(what: &'static str, offset: usize) -> PickleError {
    PickleError::Malformed { what, offset }
}

/// How [`Value`] tells our own serde code what serde has no word for: names of newtype structs,
/// which every other format passes over.
pub(super) const ANY: &str = "manyhands::Value";
pub(super) const TUPLE: &str = "manyhands::tuple";
pub(super) const BIG_INT: &str = "manyhands::int";
pub(super) const BYTE_ARRAY: &str = "manyhands::bytearray";
pub(super) const SET: &str = "manyhands::set";
pub(super) const FROZEN_SET: &str = "manyhands::frozenset";

/// Index of a [`Node`].
type Id = usize;

/// One value of the pickle, and where the opcode stands that made it.
#[derive(Debug)]
struct Node<'p> {
    offset: usize,
    kind: Kind<'p>,
}

#[derive(Debug)]
enum Kind<'p> {
    /// A value without parts: none, a bool, a number.
    Atom(Value),
    Str(Cow<'p, str>),
    Bytes(Cow<'p, [u8]>),
    ByteArray(&'p [u8]),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Set(Vec<Id>),
    FrozenSet(Vec<Id>),
    Global(Cow<'p, str>, Cow<'p, str>),
    Call(Call),
}

/// The result of calling something.
#[derive(Debug)]
struct Call {
    callable: Id,
    /// A tuple.
    args: Id,
    /// A dict.
    kwargs: Option<Id>,
    state: Vec<Id>,
}

/// Replays a pickle's opcodes, building nodes instead of objects.
struct Reader<'p, 'l> {
    limits: &'l Limits,
    nodes: Vec<Node<'p>>,
    stack: Vec<Id>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: Memo,
    /// Where the current opcode stands.
    offset: usize,
}

impl<'p, 'l> Reader<'p, 'l> {
    fn new(limits: &'l Limits) -> Self {
        let (nodes, stack, marks) = (Vec::new(), Vec::new(), Vec::new());
        Self { limits, nodes, stack, marks, memo: Memo::default(), offset: 0 }
    }

    /// The value of the whole pickle, which was `len` bytes long.
    fn finish(self, len: usize) -> Result<Value, PickleError> {
        match (self.stack.as_slice(), self.marks.as_slice()) {
            ([root], []) => Builder::new(&self.nodes, self.limits, len).value(*root, 0),
            _ => Err(malformed("a pickle must leave exactly one value", len)),
        }
    }

    fn apply(&mut self, op: Op<'p>) -> Result<(), PickleError> {
        self.offset = op.start;
        match op.opcode {
            Opcode::Proto if op.start > 0 => self.fail("protocol named in the middle of a pickle"),
            Opcode::Proto if op.argument > [5].as_slice() => {
                self.fail("unsupported pickle protocol")
            }
            Opcode::Proto | Opcode::Frame => Ok(()),
            Opcode::Mark => self.mark(),
            Opcode::Pop => self.pop_value_or_mark(),
            Opcode::PopMark => self.since_mark().map(drop),
            Opcode::Dup => self.top().and_then(|top| self.push_id(top)),

            Opcode::None => self.push(Kind::Atom(Value::None)),
            Opcode::NewTrue => self.push(Kind::Atom(Value::Bool(true))),
            Opcode::NewFalse => self.push(Kind::Atom(Value::Bool(false))),
            Opcode::BinInt1 | Opcode::BinInt2 => self.push_int(op.unsigned().cast_signed()),
            Opcode::BinInt | Opcode::Long1 | Opcode::Long4 => {
                self.push(Kind::Atom(Value::int_from_le_bytes(op.argument)))
            }
            Opcode::Int | Opcode::Long => self.push_decimal(op),
            Opcode::BinFloat => match op.argument.try_into() {
                Ok(bytes) => self.push(Kind::Atom(Value::Float(f64::from_be_bytes(bytes)))),
                Err(_) => self.fail("float is not eight bytes long"),
            },
            Opcode::Float => match ascii(op.argument).and_then(|text| text.trim().parse().ok()) {
                Some(number) => self.push(Kind::Atom(Value::Float(number))),
                None => self.fail("float is not a decimal number"),
            },

            Opcode::BinUnicode | Opcode::ShortBinUnicode | Opcode::BinUnicode8 => {
                match std::str::from_utf8(op.argument) {
                    Ok(text) => self.push(Kind::Str(text.into())),
                    Err(_) => self.fail("str is not UTF-8; it may hold a lone surrogate"),
                }
            }
            Opcode::Unicode => match raw_unicode_escape(op.argument) {
                Some(text) => self.push(Kind::Str(text.into())),
                None => self.fail("str with an invalid escape or a lone surrogate"),
            },
            Opcode::BinString | Opcode::ShortBinString => {
                self.push(byte_string(op.argument.into()))
            }
            Opcode::String => match quoted(op.argument) {
                Some(bytes) => self.push(byte_string(bytes.into())),
                None => self.fail("byte string with invalid quotes or escapes"),
            },
            Opcode::BinBytes | Opcode::ShortBinBytes | Opcode::BinBytes8 => {
                self.push(Kind::Bytes(op.argument.into()))
            }
            Opcode::ByteArray8 => self.push(Kind::ByteArray(op.argument)),

            Opcode::EmptyTuple => self.push(Kind::Tuple(Vec::new())),
            Opcode::EmptyList => self.push(Kind::List(Vec::new())),
            Opcode::EmptyDict => self.push(Kind::Dict(Vec::new())),
            Opcode::EmptySet => self.push(Kind::Set(Vec::new())),
            Opcode::Tuple1 => self.pop_many(1).and_then(|items| self.push(Kind::Tuple(items))),
            Opcode::Tuple2 => self.pop_many(2).and_then(|items| self.push(Kind::Tuple(items))),
            Opcode::Tuple3 => self.pop_many(3).and_then(|items| self.push(Kind::Tuple(items))),
            Opcode::Tuple => self.since_mark().and_then(|items| self.push(Kind::Tuple(items))),
            Opcode::List => self.since_mark().and_then(|items| self.push(Kind::List(items))),
            Opcode::FrozenSet => {
                self.since_mark().and_then(|items| self.push(Kind::FrozenSet(items)))
            }
            Opcode::Dict => {
                let items = self.since_mark()?;
                let pairs = self.pairs(&items)?;
                self.push(Kind::Dict(pairs))
            }
            Opcode::Append => self.pop_many(1).and_then(|items| self.extend(items)),
            Opcode::Appends | Opcode::AddItems => {
                self.since_mark().and_then(|items| self.extend(items))
            }
            Opcode::SetItem => self.pop_many(2).and_then(|items| self.set_items(&items)),
            Opcode::SetItems => self.since_mark().and_then(|items| self.set_items(&items)),

            Opcode::Global => {
                let (module, name) = self.two_lines(op)?;
                self.push(Kind::Global(module.into(), name.into()))
            }
            Opcode::StackGlobal => self.stack_global(),
            Opcode::Ext1 | Opcode::Ext2 | Opcode::Ext4 => {
                let name = format!("extension {}", op.unsigned());
                self.push(Kind::Global("copyreg".into(), name.into()))
            }
            Opcode::Reduce | Opcode::NewObj => {
                let (args, callable) = (self.pop()?, self.pop()?);
                self.call(callable, args, None)
            }
            Opcode::NewObjEx => {
                let (kwargs, args, callable) = (self.pop()?, self.pop()?, self.pop()?);
                self.call(callable, args, Some(kwargs))
            }
            Opcode::Inst => {
                let args = self.since_mark()?;
                let (module, name) = self.two_lines(op)?;
                let callable = self.node(Kind::Global(module.into(), name.into()))?;
                let args = self.node(Kind::Tuple(args))?;
                self.call(callable, args, None)
            }
            Opcode::Obj => {
                let mut args = self.since_mark()?;
                if args.is_empty() {
                    return self.fail("instance without a class");
                }
                let callable = args.remove(0);
                let args = self.node(Kind::Tuple(args))?;
                self.call(callable, args, None)
            }
            Opcode::Build => self.build_state(),

            Opcode::Put | Opcode::BinPut | Opcode::LongBinPut | Opcode::Memoize => {
                self.memoize(op.memo_index(self.memo.len())?)
            }
            Opcode::Get | Opcode::BinGet | Opcode::LongBinGet => {
                match self.memo.get(op.memo_index(0)?) {
                    Some(id) => self.push_id(id),
                    None => self.fail("reference to a memo entry that does not exist"),
                }
            }

            Opcode::PersId | Opcode::BinPersId => self.fail("persistent ids are not supported"),
            Opcode::NextBuffer | Opcode::ReadonlyBuffer => {
                self.fail("out-of-band buffers are not supported")
            }
            Opcode::Stop => self.fail("end of a pickle inside of it"),
        }
    }

    fn fail<T>(&self, what: &'static str) -> Result<T, PickleError> {
        Err(malformed(what, self.offset))
    }

    fn node(&mut self, kind: Kind<'p>) -> Result<Id, PickleError> {
        let limit = self.limits.values_max;
        if self.nodes.len() >= limit {
            return Err(PickleError::TooLarge { what: "values", limit });
        }
        self.nodes.push(Node { offset: self.offset, kind });
        Ok(self.nodes.len() - 1)
    }

    fn push(&mut self, kind: Kind<'p>) -> Result<(), PickleError> {
        let id = self.node(kind)?;
        self.push_id(id)
    }

    fn push_id(&mut self, id: Id) -> Result<(), PickleError> {
        let limit = self.limits.stack_max;
        if self.stack.len() >= limit {
            return Err(PickleError::TooLarge { what: "values on the stack", limit });
        }
        self.stack.push(id);
        Ok(())
    }

    fn push_int(&mut self, number: i64) -> Result<(), PickleError> {
        self.push(Kind::Atom(Value::Int(number)))
    }

    /// The text forms of `int`, and of `bool` before protocol 2.
    fn push_decimal(&mut self, op: Op<'p>) -> Result<(), PickleError> {
        let text = ascii(op.argument).unwrap_or_default().trim();
        let number = match (op.opcode, text) {
            (Opcode::Int, "01") => return self.push(Kind::Atom(Value::Bool(true))),
            (Opcode::Int, "00") => return self.push(Kind::Atom(Value::Bool(false))),
            (Opcode::Long, _) => text.strip_suffix('L').unwrap_or(text),
            _ => text,
        };
        if number.len() > DIGITS_MAX {
            return Err(PickleError::TooLarge { what: "decimal digits", limit: DIGITS_MAX });
        }
        match decimal(number) {
            Some(value) => self.push(Kind::Atom(value)),
            None => self.fail("int is not a decimal number"),
        }
    }

    fn mark(&mut self) -> Result<(), PickleError> {
        let limit = self.limits.marks_max;
        if self.marks.len() >= limit {
            return Err(PickleError::TooLarge { what: "open marks", limit });
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    /// How deep the stack may be popped: down to the topmost mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Id>, PickleError> {
        match self.stack.len().checked_sub(count) {
            Some(height) if height >= self.floor() => Ok(self.stack.split_off(height)),
            _ => self.fail("stack underflow"),
        }
    }

    fn pop(&mut self) -> Result<Id, PickleError> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn top(&self) -> Result<Id, PickleError> {
        match self.stack.last() {
            Some(&id) if self.stack.len() > self.floor() => Ok(id),
            _ => self.fail("stack underflow"),
        }
    }

    fn pop_value_or_mark(&mut self) -> Result<(), PickleError> {
        if self.marks.last() == Some(&self.stack.len()) {
            self.marks.pop();
            return Ok(());
        }
        self.pop().map(drop)
    }

    fn since_mark(&mut self) -> Result<Vec<Id>, PickleError> {
        match self.marks.pop() {
            Some(height) => Ok(self.stack.split_off(height)),
            None => self.fail("no mark on the stack"),
        }
    }

    fn pairs(&self, items: &[Id]) -> Result<Vec<(Id, Id)>, PickleError> {
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return self.fail("dict key without a value");
        }
        Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
    }

    /// The container or instance on top of the stack, to be changed.
    fn target(&mut self) -> Result<&mut Kind<'p>, PickleError> {
        let (top, offset) = (self.top()?, self.offset);
        let missing = malformed("stack underflow", offset);
        self.nodes.get_mut(top).map(|node| &mut node.kind).ok_or(missing)
    }

    fn extend(&mut self, mut items: Vec<Id>) -> Result<(), PickleError> {
        match self.target()? {
            Kind::List(old) | Kind::Set(old) => old.append(&mut items),
            Kind::Call(call) => call.state.append(&mut items),
            _ => return self.fail("items for something that is no list or set"),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Result<(), PickleError> {
        let mut pairs = self.pairs(items)?;
        match self.target()? {
            Kind::Dict(old) => old.append(&mut pairs),
            Kind::Call(_) => {
                let dict = self.node(Kind::Dict(pairs))?;
                self.add_state(dict)?;
            }
            _ => return self.fail("keys for something that is no dict"),
        }
        Ok(())
    }

    fn build_state(&mut self) -> Result<(), PickleError> {
        let state = self.pop()?;
        self.add_state(state)
    }

    fn add_state(&mut self, state: Id) -> Result<(), PickleError> {
        match self.target()? {
            Kind::Call(call) => call.state.push(state),
            _ => return self.fail("state for something that is no instance"),
        }
        Ok(())
    }

    fn two_lines(&self, op: Op<'p>) -> Result<(&'p str, &'p str), PickleError> {
        let (module, name) = op.lines();
        match (std::str::from_utf8(module), std::str::from_utf8(name)) {
            (Ok(module), Ok(name)) => {
                check_name(module)?;
                check_name(name)?;
                Ok((module, name))
            }
            _ => self.fail("name of a class or function is not UTF-8"),
        }
    }

    fn stack_global(&mut self) -> Result<(), PickleError> {
        let (name, module) = (self.pop()?, self.pop()?);
        let text = |id: Id| match self.nodes.get(id).map(|node| &node.kind) {
            Some(Kind::Str(text)) => Some(text),
            _ => None,
        };
        match (text(module), text(name)) {
            (Some(module), Some(name)) => {
                check_name(module)?;
                check_name(name)?;
                let global = Kind::Global(module.clone(), name.clone());
                self.push(global)
            }
            _ => self.fail("name of a class or function is not a str"),
        }
    }

    fn call(&mut self, callable: Id, args: Id, kwargs: Option<Id>) -> Result<(), PickleError> {
        self.push(Kind::Call(Call { callable, args, kwargs, state: Vec::new() }))
    }

    /// More entries than values only repeat them.
    fn memoize(&mut self, index: usize) -> Result<(), PickleError> {
        let limit = self.limits.values_max;
        if self.memo.len() >= limit {
            return Err(PickleError::TooLarge { what: "memo entries", limit });
        }
        let top = self.top()?;
        self.memo.insert(index, top);
        Ok(())
    }
}

/// The memo: picklers number its entries one after another, if not from 0.
#[derive(Debug, Default)]
struct Memo {
    first: usize,
    /// The entries from `first` on.
    consecutive: Vec<Id>,
    scattered: BTreeMap<usize, Id>,
}

impl Memo {
    fn len(&self) -> usize {
        self.consecutive.len() + self.scattered.len()
    }

    fn get(&self, index: usize) -> Option<Id> {
        let place = index.checked_sub(self.first);
        let consecutive = place.and_then(|place| self.consecutive.get(place));
        consecutive.or_else(|| self.scattered.get(&index)).copied()
    }

    fn insert(&mut self, index: usize, id: Id) {
        if self.consecutive.is_empty() {
            self.first = index;
        }
        let place = index.checked_sub(self.first);
        if place == Some(self.consecutive.len()) {
            self.scattered.remove(&index);
            self.consecutive.push(id);
        } else if let Some(entry) = place.and_then(|place| self.consecutive.get_mut(place)) {
            *entry = id;
        } else {
            self.scattered.insert(index, id);
        }
    }
}

/// Builds a value out of nodes, as deep as `depth_max` allows.
struct Builder<'n, 'p> {
    nodes: &'n [Node<'p>],
    limits: &'n Limits,
    /// Values built so far.
    values: usize,
    /// Bytes of text and numbers that may still be copied: those of the pickle, and
    /// `expansion_max` more for what is referred to again.
    bytes_left: usize,
    /// Whether a node is being built right now; to meet it again means that it contains itself.
    open: Vec<bool>,
}

impl<'n, 'p> Builder<'n, 'p> {
    fn new(nodes: &'n [Node<'p>], limits: &'n Limits, pickle_len: usize) -> Self {
        let bytes_left = limits.expansion_max.saturating_add(pickle_len);
        Self { nodes, limits, values: 0, bytes_left, open: vec![false; nodes.len()] }
    }

    fn value(&mut self, id: Id, depth: usize) -> Result<Value, PickleError> {
        let Some(Node { offset, kind }) = self.nodes.get(id) else {
            return Err(malformed("value without a node", 0));
        };
        let limit = self.limits.values_max;
        if self.values >= limit {
            return Err(PickleError::TooLarge { what: "values", limit });
        }
        self.values += 1;
        match kind {
            Kind::Atom(Value::BigInt(bytes)) => self.bytes(bytes).map(Value::BigInt),
            Kind::Atom(value) => Ok(value.clone()),
            Kind::Str(text) => self.text(text).map(Value::Str),
            Kind::Bytes(bytes) => self.bytes(bytes).map(Value::Bytes),
            Kind::ByteArray(bytes) => self.bytes(bytes).map(Value::ByteArray),
            Kind::Global(module, name) => {
                let (module, name) = (self.text(module)?, self.text(name)?);
                Ok(Value::Object(Box::new(Object { module, name, args: None, state: Vec::new() })))
            }
            container => {
                if self.open.get(id) != Some(&false) {
                    return Err(malformed("value that contains itself", *offset));
                }
                let limit = self.limits.depth_max;
                if depth >= limit {
                    return Err(PickleError::TooLarge { what: "containers in each other", limit });
                }
                self.set_open(id, true);
                let built = self.container(container, *offset, depth + 1)?;
                self.set_open(id, false);
                Ok(built)
            }
        }
    }

    fn set_open(&mut self, id: Id, open: bool) {
        if let Some(flag) = self.open.get_mut(id) {
            *flag = open;
        }
    }

    fn container(
        &mut self,
        kind: &Kind<'p>,
        offset: usize,
        depth: usize,
    ) -> Result<Value, PickleError> {
        match kind {
            Kind::List(items) => self.items(items, depth).map(Value::List),
            Kind::Tuple(items) => self.items(items, depth).map(Value::Tuple),
            Kind::Set(items) => self.items(items, depth).map(Value::Set),
            Kind::FrozenSet(items) => self.items(items, depth).map(Value::FrozenSet),
            Kind::Dict(pairs) => {
                let pair = |&(k, v): &(Id, Id)| Ok((self.value(k, depth)?, self.value(v, depth)?));
                pairs.iter().map(pair).collect::<Result<_, _>>().map(Value::Dict)
            }
            Kind::Call(call) => self.call(call, offset, depth),
            _ => Err(malformed("value is no container", offset)),
        }
    }

    fn items(&mut self, items: &[Id], depth: usize) -> Result<Vec<Value>, PickleError> {
        items.iter().map(|&id| self.value(id, depth)).collect()
    }

    fn call(&mut self, call: &Call, offset: usize, depth: usize) -> Result<Value, PickleError> {
        let callable = self.value(call.callable, depth)?;
        let Value::Tuple(mut args) = self.value(call.args, depth)? else {
            return Err(malformed("arguments are not a tuple", offset));
        };
        if let Some(kwargs) = call.kwargs {
            args.push(self.value(kwargs, depth)?);
        }
        let state = self.items(&call.state, depth)?;
        let Value::Object(object) = callable else {
            return Err(malformed("call of something that is no class or function", offset));
        };
        self.called(*object, args, state)
    }

    /// What calling `callable` stands for: plain data where the builtin types are pickled as calls,
    /// an inert object otherwise.
    fn called(
        &mut self,
        callable: Object,
        mut args: Vec<Value>,
        state: Vec<Value>,
    ) -> Result<Value, PickleError> {
        if callable.args.is_some() {
            // The method of an instance, say. It is named after the innermost callable.
            let (module, name) = (self.text(&callable.module)?, self.text(&callable.name)?);
            args.insert(0, Value::Object(Box::new(callable)));
            return Ok(Value::Object(Box::new(Object { module, name, args: Some(args), state })));
        }
        if state.is_empty() {
            args = match builtin(&callable.module, &callable.name, args) {
                Ok(value) => return Ok(value),
                Err(args) => args,
            };
        }
        let Object { module, name, .. } = match class_of(&callable, &mut args) {
            Some(class) => class,
            None => callable,
        };
        Ok(Value::Object(Box::new(Object { module, name, args: Some(args), state })))
    }

    fn text(&mut self, text: &str) -> Result<String, PickleError> {
        self.spend(text.len()).map(|()| text.to_owned())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<Vec<u8>, PickleError> {
        self.spend(bytes.len()).map(|()| bytes.to_vec())
    }

    fn spend(&mut self, len: usize) -> Result<(), PickleError> {
        let limit = self.limits.expansion_max;
        let what = "bytes beyond the size of the pickle";
        self.bytes_left =
            self.bytes_left.checked_sub(len).ok_or(PickleError::TooLarge { what, limit })?;
        Ok(())
    }
}

/// Takes the class out of the arguments of a function that makes instances of any.
fn class_of(callable: &Object, args: &mut Vec<Value>) -> Option<Object> {
    let is_generic = matches!(
        (callable.module.as_str(), callable.name.as_str()),
        ("copyreg" | "copy_reg", "_reconstructor" | "__newobj__" | "__newobj_ex__")
    );
    if !is_generic || !matches!(args.first(), Some(Value::Object(class)) if class.args.is_none()) {
        return None;
    }
    match args.remove(0) {
        Value::Object(class) => Some(*class),
        _ => None,
    }
}

fn check_name(name: &str) -> Result<(), PickleError> {
    let limit = NAME_LEN_MAX;
    if name.len() > limit {
        let what = "bytes in the name of a class or function";
        return Err(PickleError::TooLarge { what, limit });
    }
    Ok(())
}

/// The calls by which older protocols write values of builtin types. Hands `args` back when it is
/// none of them.
fn builtin(module: &str, name: &str, mut args: Vec<Value>) -> Result<Value, Vec<Value>> {
    let is_builtin = matches!(module, "builtins" | "__builtin__");
    match (name, args.as_mut_slice()) {
        ("encode", [Value::Str(text), Value::Str(encoding)])
            if module == "_codecs" && is_latin1(encoding) =>
        {
            latin1(text).map(Value::Bytes).ok_or(args)
        }
        ("set", []) if is_builtin => Ok(Value::Set(Vec::new())),
        ("set", [Value::List(items) | Value::Tuple(items)]) if is_builtin => {
            Ok(Value::Set(std::mem::take(items)))
        }
        ("frozenset", []) if is_builtin => Ok(Value::FrozenSet(Vec::new())),
        ("frozenset", [Value::List(items) | Value::Tuple(items)]) if is_builtin => {
            Ok(Value::FrozenSet(std::mem::take(items)))
        }
        ("bytes", []) if is_builtin => Ok(Value::Bytes(Vec::new())),
        ("bytearray", []) if is_builtin => Ok(Value::ByteArray(Vec::new())),
        ("bytearray", [Value::Bytes(bytes)]) if is_builtin => {
            Ok(Value::ByteArray(std::mem::take(bytes)))
        }
        ("bytearray", [Value::Str(text), Value::Str(encoding)])
            if is_builtin && is_latin1(encoding) =>
        {
            latin1(text).map(Value::ByteArray).ok_or(args)
        }
        _ => Err(args),
    }
}

fn is_latin1(encoding: &str) -> bool {
    matches!(encoding, "latin1" | "latin-1")
}

fn latin1(text: &str) -> Option<Vec<u8>> {
    text.chars().map(|c| u8::try_from(c).ok()).collect()
}

fn ascii(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().filter(|text| text.is_ascii())
}

/// A Python 2 `str`: text as long as it is ASCII.
fn byte_string(bytes: Cow<'_, [u8]>) -> Kind<'_> {
    match bytes {
        Cow::Borrowed(bytes) => match ascii(bytes) {
            Some(text) => Kind::Str(text.into()),
            None => Kind::Bytes(bytes.into()),
        },
        Cow::Owned(bytes) => match String::from_utf8(bytes) {
            Ok(text) if text.is_ascii() => Kind::Str(text.into()),
            Ok(text) => Kind::Bytes(text.into_bytes().into()),
            Err(error) => Kind::Bytes(error.into_bytes().into()),
        },
    }
}

fn is_negative(le_bytes: &[u8]) -> bool {
    le_bytes.last().is_some_and(|&high| high >= 0x80)
}

/// Drops the high bytes that only repeat the sign.
pub(super) fn shortest(mut bytes: &[u8]) -> &[u8] {
    while let [rest @ .., high] = bytes {
        let is_sign = match rest.last() {
            Some(_) => *high == if is_negative(rest) { 0xff } else { 0 },
            None => *high == 0,
        };
        if !is_sign {
            break;
        }
        bytes = rest;
    }
    bytes
}

/// Reads a decimal `int` of any size; the caller bounds its length.
fn decimal(text: &str) -> Option<Value> {
    if let Ok(number) = text.parse() {
        return Some(Value::Int(number));
    }
    let (is_negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    if digits.is_empty() {
        return None;
    }
    let mut magnitude = Vec::new();
    for digit in digits.chars() {
        let mut carry = digit.to_digit(10)?;
        for byte in &mut magnitude {
            let sum = u32::from(*byte) * 10 + carry;
            *byte = sum.to_le_bytes()[0];
            carry = sum >> 8;
        }
        if carry > 0 {
            magnitude.push(carry.to_le_bytes()[0]);
        }
    }
    magnitude.push(0);
    if is_negative {
        negate(&mut magnitude);
    }
    Some(Value::int_from_le_bytes(&magnitude))
}

/// Changes the sign of a two's complement, little-endian number.
fn negate(le_bytes: &mut [u8]) {
    let mut carry = true;
    for byte in le_bytes {
        (*byte, carry) = (!*byte).overflowing_add(u8::from(carry));
    }
}

/// An `int` of any size as Python's `hex` shows it, from its two's complement, little-endian.
pub(super) fn hexadecimal(le_bytes: &[u8]) -> String {
    let mut magnitude = le_bytes.to_vec();
    let sign = if is_negative(le_bytes) {
        negate(&mut magnitude);
        "-"
    } else {
        ""
    };
    let digits: String = magnitude.iter().rev().map(|byte| format!("{byte:02x}")).collect();
    format!("{sign}0x{}", digits.trim_start_matches('0'))
}

#[cfg(test)]
mod tests {
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
        let reconstructed =
            b"ccopy_reg\n_reconstructor\n(c__main__\nTask\nc__builtin__\nobject\nNtR.";
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
            protocol: 4,
            prelude_len: 4,
            bytes: bytes::Bytes::from_static(b"N\x94\x940]\x94K\x01a"),
        };
        let value = payload.value(&Limits::default());
        assert_eq!(value, Ok(Value::List(vec![Value::Int(1)])));
    }

    #[test]
    fn what_is_no_pickle_is_refused() {
        for pickle in [&b""[..], b"N", b".", b"NN.", b"(.", b"N.N", b"\x80\x06N.", b"h\x05.", b"e."]
        {
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
}
