//! What the library promises, checked against what Python itself does.

mod oracle;
mod pythons;
