//! Client and wire protocol of manyhands.

pub mod wire;
