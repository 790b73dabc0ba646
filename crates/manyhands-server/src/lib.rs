//! The manyhands server, to run or to embed.

pub mod queue;
