//! The names of sessions of our own clients, by which they say that they are ours and what they know.

/// How they begin; the version follows.
const PREFIX: &str = "manyhands/";
/// The version that this crate speaks.
pub const VERSION: u32 = 1;

/// The name of a session of a client of ours; `about` says more of it, for people.
#[must_use]
pub fn announcement(about: &str) -> String {
    format!("{PREFIX}{VERSION} {about}")
}

/// Whether a session of this name is one of our own clients.
#[must_use]
pub fn is_ours(session: &str) -> bool {
    session.starts_with(PREFIX)
}

/// The version that a session of this name announces; 0 for those that know none of this.
#[must_use]
pub fn announced(session: &str) -> u32 {
    let rest = session.strip_prefix(PREFIX).unwrap_or_default();
    let number = rest.split(' ').next().unwrap_or_default();
    number.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_says_by_its_name_what_it_knows() {
        assert_eq!(announced(&announcement("x")), VERSION);
        assert!(is_ours(&announcement("")));
        assert_eq!(announced("manyhands/12"), 12);
        for old in ["manyhands/0.1.0 pid=7", "manyhands/", "manyhands/x", "manyhands/1x"] {
            assert_eq!((announced(old), is_ours(old)), (0, true), "{old}");
        }
        assert_eq!((announced("MainProcess"), is_ours("MainProcess")), (0, false));
    }
}
