//! Replays a pickle's opcodes on a stack of nodes, which refer to each other by number.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::builder::Builder;
use super::node::{Call, Id, Kind, Node};
use super::number::decimal;
use super::{Value, malformed};
use crate::wire::pickle::lines::{quoted, raw_unicode_escape};
use crate::wire::pickle::opcode::{Op, Opcode};
use crate::wire::pickle::{Limits, PickleError};

/// Most decimal digits of an `int` that is written as text. CPython's own bound since 3.11.
const DIGITS_MAX: usize = 4300;
/// Longest name of a module, class or function, in bytes: objects repeat the names of their parts.
pub(super) const NAME_LEN_MAX: usize = 4 << 10;

/// Replays a pickle's opcodes, building nodes instead of objects.
pub(super) struct Reader<'p, 'l> {
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
    pub(super) fn new(limits: &'l Limits) -> Self {
        let (nodes, stack, marks) = (Vec::new(), Vec::new(), Vec::new());
        Self { limits, nodes, stack, marks, memo: Memo::default(), offset: 0 }
    }

    /// The value of the whole pickle, which was `len` bytes long.
    pub(super) fn finish(self, len: usize) -> Result<Value, PickleError> {
        match (self.stack.as_slice(), self.marks.as_slice()) {
            ([root], []) => Builder::new(&self.nodes, self.limits, len).value(*root, 0),
            _ => Err(malformed("a pickle must leave exactly one value", len)),
        }
    }

    pub(super) fn apply(&mut self, op: Op<'p>) -> Result<(), PickleError> {
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

fn check_name(name: &str) -> Result<(), PickleError> {
    let limit = NAME_LEN_MAX;
    if name.len() > limit {
        let what = "bytes in the name of a class or function";
        return Err(PickleError::TooLarge { what, limit });
    }
    Ok(())
}
