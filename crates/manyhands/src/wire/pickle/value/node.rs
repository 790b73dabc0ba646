//! The values of a pickle as they are found: nodes that refer to each other by number.

use std::borrow::Cow;

use super::Value;

/// Index of a [`Node`].
pub(super) type Id = usize;

/// One value of the pickle, and where the opcode stands that made it.
#[derive(Debug)]
pub(super) struct Node<'p> {
    pub(super) offset: usize,
    pub(super) kind: Kind<'p>,
}

#[derive(Debug)]
pub(super) enum Kind<'p> {
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
pub(super) struct Call {
    pub(super) callable: Id,
    /// A tuple.
    pub(super) args: Id,
    /// A dict.
    pub(super) kwargs: Option<Id>,
    pub(super) state: Vec<Id>,
}
