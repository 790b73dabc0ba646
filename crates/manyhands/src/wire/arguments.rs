//! What a call's arguments mean: bound to parameters as Python binds them, and read one by one.

use std::time::Duration;

use super::pickle::{Argument, Atom, Call, Limits, Payload, PickleError};
use super::reply::Exception;
use super::text::repr;

/// Most items of one call.
pub const BATCH_LEN_MAX: usize = 16_384;
/// Longest delay or hold: a hundred years. What is longer is as good as that.
pub const TIME_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
/// Longest key, in bytes: it is kept for as long as its window.
pub const KEY_LEN_MAX: usize = 256;
/// Longest reason of a `nack` that is kept, in characters.
pub const REASON_CHARS_MAX: usize = 1000;

/// How long a call may wait, as its caller said.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Wait {
    /// Not at all.
    No,
    /// At most this long.
    For(Duration),
    /// For ever.
    Forever,
    /// The time-out was negative: a `ValueError` wherever the call could wait.
    Negative,
}

/// Puts the arguments of `call` to the parameters `names`, of which the first `required` must be
/// there, as Python does. `multiprocessing.Queue` calls the item `obj`.
pub(super) fn bind<const N: usize>(
    call: &Call,
    method: &str,
    names: [&str; N],
    required: usize,
) -> Result<[Option<Argument>; N], Exception> {
    let given = call.args().len();
    if given > N {
        let takes = if required == N {
            format!("{}", N + 1)
        } else {
            format!("from {} to {}", required + 1, N + 1)
        };
        let s = if N == 0 { "" } else { "s" };
        return Err(Exception::TypeError(format!(
            "Queue.{method}() takes {takes} positional argument{s} but {} were given",
            given + 1
        )));
    }
    let mut bound = [None; N];
    for (slot, argument) in bound.iter_mut().zip(call.args()) {
        *slot = Some(*argument);
    }
    for (keyword, argument) in call.kwargs() {
        let name = if keyword == "obj" { "item" } else { keyword };
        let slot = names.iter().zip(&mut bound).find(|(known, _)| **known == name);
        let Some((_, slot)) = slot else {
            return Err(Exception::TypeError(format!(
                "Queue.{method}() got an unexpected keyword argument {}",
                repr(keyword)
            )));
        };
        if slot.replace(argument).is_some() {
            return Err(Exception::TypeError(format!(
                "Queue.{method}() got multiple values for argument {}",
                repr(keyword)
            )));
        }
    }
    match names.iter().zip(&bound).take(required).find(|(_, slot)| slot.is_none()) {
        Some((name, _)) => Err(Exception::TypeError(format!(
            "Queue.{method}() missing 1 required positional argument: {}",
            repr(name)
        ))),
        None => Ok(bound),
    }
}

pub(super) fn payload(
    call: &Call,
    argument: Option<Argument>,
    limits: &Limits,
) -> Result<Payload, PickleError> {
    let argument = argument.ok_or(PickleError::NotARequest { what: "no item" })?;
    call.payload(&argument, limits)
}

pub(super) fn wait(
    call: &Call,
    block: Option<Argument>,
    timeout: Option<Argument>,
) -> Result<Wait, Exception> {
    let block = truth(call, block, "block", true)?;
    let seconds = match timeout.map(|argument| call.atom(&argument)) {
        None | Some(Some(Atom::None)) => return Ok(if block { Wait::Forever } else { Wait::No }),
        Some(Some(Atom::Bool(seconds))) => f64::from(u8::from(seconds)),
        #[expect(clippy::cast_precision_loss, reason = "seconds, not a count")]
        Some(Some(Atom::Int(seconds))) => seconds as f64,
        Some(Some(Atom::Float(seconds))) => seconds,
        Some(_) => {
            return Err(Exception::TypeError(
                "'timeout' must be None or a plain int or float of seconds".into(),
            ));
        }
    };
    if !block {
        return Ok(Wait::No);
    }
    if seconds.is_nan() {
        return Err(Exception::ValueError("Invalid value NaN (not a number)".into()));
    }
    if seconds < 0.0 {
        return Ok(Wait::Negative);
    }
    // What is longer than a Duration holds is as good as for ever.
    Ok(Duration::try_from_secs_f64(seconds).map_or(Wait::Forever, Wait::For))
}

/// The truth of a simple argument, as Python's `bool()` sees it.
pub(super) fn truth(
    call: &Call,
    argument: Option<Argument>,
    name: &str,
    default: bool,
) -> Result<bool, Exception> {
    let Some(argument) = argument else { return Ok(default) };
    match call.atom(&argument) {
        Some(Atom::None) => Ok(false),
        Some(Atom::Bool(value)) => Ok(value),
        Some(Atom::Int(value)) => Ok(value != 0),
        Some(Atom::Float(value)) => Ok(value != 0.0),
        Some(Atom::Text(text)) => Ok(!text.is_empty()),
        Some(Atom::Bytes(bytes)) => Ok(!bytes.is_empty()),
        _ => Err(Exception::TypeError(format!("'{name}' must be a bool or another plain value"))),
    }
}
