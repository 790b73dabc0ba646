//! A standard error that nobody reads, and failed logins without end.
