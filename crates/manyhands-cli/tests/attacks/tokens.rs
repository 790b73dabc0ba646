//! Tokens of leases cannot be guessed, and a result is kept once.
