//! The token of a lease, as text.

use std::fmt;
use std::str::FromStr;

use smallvec::SmallVec;

/// Names one lease: what `lease` hands out, and `ack` and its like take.
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

impl LeaseToken {
    /// Its text, four numbers in hexadecimal.
    pub(super) fn text(self) -> TokenText {
        let mut out = TokenText::new();
        let Self { task, attempt, lease, seal } = self;
        for number in [task, attempt.into(), lease] {
            write_hexadecimal(number, &mut out);
            out.push(b'.');
        }
        write_hexadecimal(seal, &mut out);
        out
    }
}

/// Appends a number without zeros before it.
fn write_hexadecimal(number: u64, out: &mut TokenText) {
    let (mut digits, mut first, mut left) = ([0; HEXADECIMAL_LEN_MAX], HEXADECIMAL_LEN_MAX, number);
    for place in digits.iter_mut().rev() {
        let digit = b"0123456789abcdef".get((left & 0xf) as usize);
        *place = digit.copied().unwrap_or_default();
        first -= 1;
        left >>= 4;
        if left == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(first..).unwrap_or_default());
}

/// The text of a token, without an allocation.
pub(super) type TokenText = SmallVec<[u8; TOKEN_LEN_MAX]>;

/// Most digits of a number of 64 bits.
const HEXADECIMAL_LEN_MAX: usize = 16;
/// Room for three numbers of 64 bits, one of 32, and what parts them: 59 bytes.
const TOKEN_LEN_MAX: usize = 64;

impl fmt::Display for LeaseToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.text()).unwrap_or_default())
    }
}

/// A text that is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoToken;

impl FromStr for LeaseToken {
    type Err = NoToken;

    fn from_str(text: &str) -> Result<Self, NoToken> {
        let mut numbers = text.as_bytes().split(|&byte| byte == b'.').map(hexadecimal);
        let mut next = || numbers.next().flatten().ok_or(NoToken);
        let (task, attempt, lease, seal) = (next()?, next()?, next()?, next()?);
        if numbers.next().is_some() {
            return Err(NoToken);
        }
        let attempt = u32::try_from(attempt).map_err(|_| NoToken)?;
        Ok(Self { task, attempt, lease, seal })
    }
}

/// A number as our tokens and idents hold it: 1 to 16 digits, without a sign.
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
    fn tokens_come_back_as_they_went() {
        let token = LeaseToken { task: u64::MAX, attempt: 7, lease: 1 << 32, seal: u64::MAX };
        assert_eq!(token.to_string().parse(), Ok(token));
        let small = LeaseToken { task: 0, attempt: 1, lease: 0x10, seal: 0xf };
        assert_eq!(small.to_string(), "0.1.10.f");
        for text in [
            "",
            "1.2.3",
            "1.2.3.",
            "1..3.4",
            "1.2.3.g",
            "1.1ffffffff.3.4",
            "10000000000000000.1.1.1",
            "1.2.3.4.5",
            "1.2.3.4.",
            "-1.2.3.4",
            "+1.2.3.4",
        ] {
            assert_eq!(text.parse::<LeaseToken>(), Err(NoToken), "{text}");
        }
    }
}
