//! Python's numbers in Python's order: `int` of any size and `float`, compared exactly.
//!
//! NaN, which Python leaves without a place, comes after every other number and equals itself.

use std::cmp::Ordering;

/// 2⁶³: below it, and from its negative on, a float's whole part fits `i64`.
const TWO_TO_63: f64 = 9_223_372_036_854_775_808.0;

/// A `bool`, `int` or `float`.
#[derive(Debug, Clone)]
pub(super) enum Number {
    Int(i64),
    /// Outside `i64`; two's complement, little-endian, shortest form.
    Big(Box<[u8]>),
    Float(f64),
}

impl Number {
    /// Its type, as Python calls it.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Int(_) | Self::Big(_) => "int",
            Self::Float(_) => "float",
        }
    }
}

impl Ord for Number {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Int(a), Self::Int(b)) => a.cmp(b),
            (Self::Big(a), Self::Big(b)) => cmp_big(a, b),
            (Self::Float(a), Self::Float(b)) => cmp_floats(*a, *b),
            (Self::Int(_), Self::Big(b)) => cmp_to_zero(b).reverse(),
            (Self::Int(a), Self::Float(b)) => cmp_int_to_float(*a, *b),
            (Self::Big(a), Self::Float(b)) => cmp_big_to_float(a, *b),
            (Self::Big(_) | Self::Float(_), _) => other.cmp(self).reverse(),
        }
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Number {}

fn cmp_floats(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

fn cmp_int_to_float(a: i64, b: f64) -> Ordering {
    match truncated(b) {
        Some(whole) => a.cmp(&whole).then_with(|| cmp_floats(0.0, b.fract())),
        // No `i64` is as far from zero as this float.
        None => cmp_floats(0.0, b),
    }
}

fn cmp_big_to_float(a: &[u8], b: f64) -> Ordering {
    if truncated(b).is_some() {
        return cmp_to_zero(a);
    }
    if b.is_finite() { cmp_big(a, &big(b)) } else { cmp_floats(0.0, b) }
}

/// The float without its fraction, if that fits `i64`.
fn truncated(float: f64) -> Option<i64> {
    #[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
    (-TWO_TO_63..TWO_TO_63).contains(&float).then_some(float as i64)
}

/// A finite float of at least 2⁶³ in magnitude, which is therefore whole, in the form of
/// [`Number::Big`].
fn big(float: f64) -> Vec<u8> {
    const MANTISSA_BITS: u32 = f64::MANTISSA_DIGITS - 1;
    let bits = float.to_bits();
    let mantissa = i128::from(bits & ((1 << MANTISSA_BITS) - 1) | 1 << MANTISSA_BITS);
    let signed = if float.is_sign_negative() { -mantissa } else { mantissa };
    // The exponent is biased by 1023 and counts from the mantissa's highest bit.
    let exponent = (bits >> MANTISSA_BITS & 0x7ff).saturating_sub(1023 + u64::from(MANTISSA_BITS));
    let mut bytes: Vec<u8> = (0..exponent / 8).map(|_| 0).collect();
    bytes.extend((signed << (exponent % 8)).to_le_bytes());
    shorten(&mut bytes);
    bytes
}

/// Drops the bytes at the end that only repeat the sign.
fn shorten(bytes: &mut Vec<u8>) {
    while let [.., below, 0x00] | [.., below, 0xff] = bytes.as_slice() {
        if is_negative(bytes) != (*below >= 0x80) {
            return;
        }
        bytes.pop();
    }
}

fn cmp_big(a: &[u8], b: &[u8]) -> Ordering {
    let negative = is_negative(a);
    let by_sign = is_negative(b).cmp(&negative);
    let by_length = if negative { b.len().cmp(&a.len()) } else { a.len().cmp(&b.len()) };
    by_sign.then(by_length).then_with(|| a.iter().rev().cmp(b.iter().rev()))
}

/// A big number against zero, or against any `i64`, all of which are nearer to zero than it.
fn cmp_to_zero(big: &[u8]) -> Ordering {
    if is_negative(big) { Ordering::Less } else { Ordering::Greater }
}

fn is_negative(big: &[u8]) -> bool {
    big.last().is_some_and(|&byte| byte >= 0x80)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The number as Python would make it of an `i128`.
    fn int(value: i128) -> Number {
        i64::try_from(value).map_or_else(
            |_| {
                let mut bytes = value.to_le_bytes().to_vec();
                shorten(&mut bytes);
                Number::Big(bytes.into())
            },
            Number::Int,
        )
    }

    #[test]
    fn numbers_stand_in_the_order_that_python_gives_them() {
        let two_to_63 = 1i128 << 63;
        let in_order = [
            Number::Float(f64::NEG_INFINITY),
            Number::Float(-1e300),
            int(-(1 << 100) - 1),
            Number::Float(-(2f64.powi(100))),
            int(-two_to_63 - 1),
            int(-two_to_63),
            Number::Float(-1.5),
            Number::Int(-1),
            Number::Float(-0.5),
            Number::Int(0),
            Number::Float(f64::MIN_POSITIVE),
            Number::Int(1),
            Number::Float(1.5),
            int((1 << 53) - 1),
            Number::Float(2f64.powi(53)),
            int((1 << 53) + 1),
            int(two_to_63 - 1),
            Number::Float(2f64.powi(63)),
            int(two_to_63 + 1),
            Number::Float(2f64.powi(100)),
            int((1 << 100) + 1),
            Number::Float(1e300),
            Number::Float(f64::INFINITY),
            Number::Float(f64::NAN),
        ];
        for (i, a) in in_order.iter().enumerate() {
            for (j, b) in in_order.iter().enumerate() {
                assert_eq!(a.cmp(b), i.cmp(&j), "{a:?} and {b:?}");
            }
        }
    }

    #[test]
    fn equal_numbers_are_equal_in_every_type() {
        assert_eq!(Number::Int(1), Number::Float(1.0));
        assert_eq!(Number::Float(-0.0), Number::Int(0));
        assert_eq!(int(1 << 100), Number::Float(2f64.powi(100)));
        assert_eq!(int(-(1 << 63)), Number::Float(-(2f64.powi(63))));
        assert_eq!(Number::Float(f64::NAN), Number::Float(-f64::NAN));
    }

    proptest! {
        #[test]
        fn ints_compare_as_ints(a in any::<i128>(), b in any::<i128>(), by in 0u32..128) {
            for (a, b) in [(a, b), (a >> by, b >> by), (a, a + (b >> 120).clamp(-1, 1))] {
                prop_assert_eq!(int(a).cmp(&int(b)), a.cmp(&b));
            }
        }

        #[test]
        fn a_float_and_the_int_next_to_it_compare_exactly(
            value in any::<i128>(), by in 0u32..128, off in -1i128..2,
        ) {
            let float = (value >> by) as f64;
            prop_assume!(float.abs() < 2f64.powi(126));
            #[expect(clippy::cast_possible_truncation, reason = "it is whole and in range")]
            let exact = float as i128;
            prop_assert_eq!(int(exact + off).cmp(&Number::Float(float)), off.cmp(&0));
            prop_assert_eq!(Number::Float(float).cmp(&int(exact + off)), 0.cmp(&off));
        }
    }
}
