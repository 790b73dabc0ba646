//! Clients that take thousands of tasks at a time, or never stop asking: others still have their turn.
