//! Bugs that the simulator of the server plants in the client, and has to find.
//!
//! A place in the product asks `planted!(Bug)`, which is `false` without the feature `simulation`.
//! `docs/testing.md` lists them.

/// Whether this bug is planted.
#[cfg(not(feature = "simulation"))]
macro_rules! planted {
    ($bug:ident) => {
        false
    };
}

/// Whether this bug is planted.
#[cfg(feature = "simulation")]
macro_rules! planted {
    ($bug:ident) => {
        $crate::planted::is($crate::planted::Bug::$bug)
    };
}

#[cfg(feature = "simulation")]
macro_rules! bugs {
    ($($(#[doc = $text:literal])* $bug:ident,)*) => {
        /// What can be planted.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Bug {
            $($(#[doc = $text])* $bug,)*
        }

        impl Bug {
            /// Each of them.
            pub const ALL: &[Self] = &[$(Self::$bug,)*];
        }
    };
}

#[cfg(feature = "simulation")]
bugs! {
    /// A put without a key is made again after a lost connection that may have brought it.
    DoubtfulPutRepeated,
    /// A put that is made again has another key.
    RepeatedWithNewKey,
    /// A settlement that was under way when the connection was lost is not made again.
    SettlementForgotten,
    /// Credit is not given again on the next connection.
    CreditForgotten,
    /// A task that the server asks for stays.
    RecallIgnored,
    /// A pushed task that was not started is settled instead of given back.
    UnstartedSettled,
    /// A task that comes for a caller who has left stays with the client.
    CancelledKept,
    /// A result that found no room is forgotten, and its task with it.
    RefusedAnswerForgotten,
    /// A put that was refused settles what it would have shown to be done.
    RefusedPutSettles,
}

#[cfg(feature = "simulation")]
std::thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug in all that this thread does from now on, or takes it out again.
#[cfg(feature = "simulation")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

#[cfg(feature = "simulation")]
pub(crate) fn is(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}
