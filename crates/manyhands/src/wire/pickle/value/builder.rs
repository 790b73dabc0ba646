//! Builds a value out of nodes: the one place where what is small in a pickle may become large.

use super::node::{Call, Id, Kind, Node};
use super::{Object, Value, malformed};
use crate::wire::pickle::{Limits, PickleError};

/// Builds a value out of nodes, as deep as `depth_max` allows.
pub(super) struct Builder<'n, 'p> {
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
    pub(super) fn new(nodes: &'n [Node<'p>], limits: &'n Limits, pickle_len: usize) -> Self {
        let bytes_left = limits.expansion_max.saturating_add(pickle_len);
        Self { nodes, limits, values: 0, bytes_left, open: vec![false; nodes.len()] }
    }

    pub(super) fn value(&mut self, id: Id, depth: usize) -> Result<Value, PickleError> {
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
