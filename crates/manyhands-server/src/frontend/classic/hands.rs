//! What a stock client means: the classic front end's knowledge, kept together.
//!
//! An unmodified Python client cannot say that it is through with a task, nor how it left. What it
//! does next shows it. This is the one place with the rule that the task of a killed stock worker
//! goes back: [`verdicts`] has it. `docs/delivery.md` has all of these rules in words.
//!
//! - [`hand`]: what a session has in hand, that is, took and has not settled yet;
//! - [`sessions`]: who is connected, and the evidence of how those who left have left;
//! - [`verdicts`]: which acts settle a task, and what becomes of one when its session ends.
//!
//! Nothing here is needed by a client that names the token of its lease:
//! [`leases`](super::leases) has those.

pub(super) mod hand;
pub(super) mod sessions;
pub(super) mod verdicts;

pub(super) use self::hand::InHand;
pub(crate) use self::sessions::SessionId;
pub(super) use self::sessions::{Counted, Session, Sessions, Verdict};
