//! Behaviour tests: what users of stock CPython, and those who are up to no good, see of `manyhands serve`.
//!
//! One file per thing a user can see; [`support`] finds the Pythons and runs servers and scripts.
//! CPython's own manager server is the oracle: what it answers is what we must answer, but for the
//! differences that [`conformance`] lists with their reasons.
//!
//! | variable | effect |
//! |---|---|
//! | `MANYHANDS_PYTHONS` | comma-separated versions (`2.7,3.13`) to run instead of all that are found |
//! | `MANYHANDS_BIN` | the `manyhands` to test instead of the one just built |
//! | `MANYHANDS_SEEDS` | directory of tutorial texts whose programs are run; see [`programs`] |
//! | `MANYHANDS_FULL_SPEED` | if set, programs sleep as long as they say |

#![expect(clippy::indexing_slicing, reason = "a helper that panics fails its test, as it should")]

mod conformance;
#[path = "../shared/example_programs.rs"]
mod example_programs;
mod hostile;
mod loss;
mod methods;
mod mixed_versions;
mod payloads;
mod peer;
mod programs;
mod replay;
mod support;
mod too_large;
#[cfg(unix)]
mod unix_socket;
