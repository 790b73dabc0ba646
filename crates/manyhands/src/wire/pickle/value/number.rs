//! `int`s of any size, as two's complement, little-endian bytes.

use super::Value;

pub(super) fn is_negative(le_bytes: &[u8]) -> bool {
    le_bytes.last().is_some_and(|&high| high >= 0x80)
}

/// Drops the high bytes that only repeat the sign.
pub(in crate::wire::pickle) fn shortest(mut bytes: &[u8]) -> &[u8] {
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
pub(super) fn decimal(text: &str) -> Option<Value> {
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
pub(in crate::wire::pickle) fn hexadecimal(le_bytes: &[u8]) -> String {
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
