//! The token of a lease.

/// Names one lease: what a lease hands out, and what settles it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseToken {
    /// Position of the task's put in its queue.
    pub task: u64,
    /// Which attempt at it, from 1.
    pub attempt: u32,
    /// Number of the lease in its queue.
    pub lease: u64,
    /// Proves that the server gave it out, for this queue.
    pub seal: u64,
}

/// Most digits of a number of 64 bits.
const HEXADECIMAL_LEN_MAX: usize = 16;

/// A number as idents hold it: 1 to 16 digits, without a sign.
#[must_use]
pub fn hexadecimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > HEXADECIMAL_LEN_MAX {
        return None;
    }
    let mut number = 0;
    for &byte in digits {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            _ => return None,
        };
        number = number << 4 | u64::from(digit);
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_digits_alone() {
        assert_eq!(hexadecimal(b"0"), Some(0));
        assert_eq!(hexadecimal(b"fF"), Some(0xff));
        assert_eq!(hexadecimal(b"ffffffffffffffff"), Some(u64::MAX));
        for text in ["", "g", "10000000000000000", "-1", "+1", " 1", "1."] {
            assert_eq!(hexadecimal(text.as_bytes()), None, "{text}");
        }
    }
}
