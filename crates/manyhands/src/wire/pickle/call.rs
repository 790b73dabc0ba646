//! One request, scanned but not built.
#![allow(missing_docs, clippy::all, unused, clippy::unimplemented)]
use super::{Limits, Payload, PickleError};
use bytes::{Bytes, BytesMut};

/// A scanned request `(ident, method, args, kwds)`.
#[derive(Debug)]
pub struct Call {
    frame: Bytes,
}

/// Where one argument stands in its [`Call`].
#[derive(Debug, Clone, Copy)]
pub struct Argument {}

/// A simple value of an argument, read without building objects.
#[derive(Debug, Clone, PartialEq)]
pub enum Atom {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
}
impl Call {
    pub fn parse(frame: Bytes, limits: &Limits) -> Result<Call, PickleError> {
        unimplemented!()
    }
    pub fn protocol(&self) -> u8 {
        unimplemented!()
    }
    pub fn ident(&self) -> Option<&str> {
        unimplemented!()
    }
    pub fn method(&self) -> &str {
        unimplemented!()
    }
    pub fn args(&self) -> &[Argument] {
        unimplemented!()
    }
    pub fn kwargs(&self) -> impl Iterator<Item = (&str, Argument)> {
        [].into_iter()
    }
    pub fn atom(&self, argument: &Argument) -> Option<Atom> {
        unimplemented!()
    }
    pub fn payload(&self, argument: &Argument, limits: &Limits) -> Result<Payload, PickleError> {
        unimplemented!()
    }
    pub fn token_id(&self, argument: &Argument) -> Option<String> {
        unimplemented!()
    }
}
impl Payload {
    pub fn write_reply(&self, out: &mut BytesMut) {}
}
