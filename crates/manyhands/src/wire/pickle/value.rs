//! Plain data out of a pickle.

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
    List(Vec<Value>),
    /// `tuple`
    Tuple(Vec<Value>),
    /// `dict`, in its order
    Dict(Vec<(Value, Value)>),
    /// `set`
    Set(Vec<Value>),
    /// `frozenset`
    FrozenSet(Vec<Value>),
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
    /// Arguments it was to be called with; `None` for the class or function itself.
    pub args: Option<Vec<Value>>,
    /// State, list items and the like that were to be applied afterwards.
    pub state: Vec<Value>,
}

impl super::Payload {
    /// Reads the payload as plain data, within `limits`.
    ///
    /// # Errors
    ///
    /// [`PickleError`](super::PickleError) when the bytes are not a pickle or a limit is reached.
    pub fn value(&self, limits: &super::Limits) -> Result<Value, super::PickleError> {
        let _ = limits;
        Err(super::PickleError::NotARequest { what: "not written yet" })
    }
}
