//! What proves that we gave out a lease's token: 64 bits that nobody can guess.
//!
//! A keyed hash needs no memory for each lease. Its key is that of the data directory, so that tokens
//! stay good across a restart; without one it is of this run.

#![expect(deprecated, reason = "the one keyed hash of the standard library that stays as it is")]

use std::hash::{BuildHasher, Hasher, RandomState, SipHasher};

use manyhands::wire::token::LeaseToken;

use super::QueueId;
use crate::queue::{TaskId, Token};

/// Signs the tokens of one queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Signer {
    key: (u64, u64),
}

impl Signer {
    /// One that makes those of the queues, of a key that is random and secret.
    pub(super) fn new(key: u64) -> Self {
        Self { key: (key, 0) }
    }

    /// One with a key of its own.
    pub(super) fn random() -> Self {
        Self::new(RandomState::new().hash_one(0))
    }

    /// The one of a queue: of a named queue the same when the server starts anew.
    pub(super) fn of(self, id: QueueId, name: Option<&str>) -> Self {
        let half = |number: u64| {
            let mut hasher = SipHasher::new_with_keys(self.key.0, self.key.1 + number);
            match name {
                Some(name) => hasher.write(name.as_bytes()),
                None => hasher.write(&id.to_le_bytes()),
            }
            // No name has this byte.
            hasher.write(&[0xff]);
            hasher.finish()
        };
        Self { key: (half(0), half(1)) }
    }

    fn seal(self, Token { task, attempt, lease }: Token) -> u64 {
        let mut hasher = SipHasher::new_with_keys(self.key.0, self.key.1);
        let mut text = [0; 24];
        let numbers = [task.0, lease, attempt.into()];
        for (part, number) in text.chunks_exact_mut(8).zip(numbers) {
            part.copy_from_slice(&number.to_le_bytes());
        }
        // Whole words, in one call: it is made for each task that is handed out.
        hasher.write(&text);
        hasher.finish()
    }

    /// As our own clients get it.
    pub(crate) fn sign(self, token: Token) -> LeaseToken {
        let Token { task: TaskId(task), attempt, lease } = token;
        LeaseToken { task, attempt, lease, seal: self.seal(token) }
    }

    /// The lease that a token names; nothing if we did not give it out for this queue. Two numbers
    /// are compared in the same time, whatever they are.
    pub(super) fn verify(self, token: LeaseToken) -> Option<Token> {
        let LeaseToken { task, attempt, lease, seal } = token;
        let token = Token { task: TaskId(task), attempt, lease };
        (self.seal(token) ^ seal == 0).then_some(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_neighbour_of_a_token_is_one() {
        let signer = Signer::new(7);
        let token = Token { task: TaskId(3), attempt: 1, lease: 1 << 32 };
        let signed = signer.sign(token);
        assert_eq!(signer.verify(signed), Some(token));
        assert_eq!(Signer::new(8).verify(signed), None);
        for forged in [
            LeaseToken { task: 4, lease: signed.lease + 1, ..signed },
            LeaseToken { attempt: 2, ..signed },
            LeaseToken { seal: signed.seal + 1, ..signed },
        ] {
            assert_eq!(signer.verify(forged), None);
        }
    }
}
