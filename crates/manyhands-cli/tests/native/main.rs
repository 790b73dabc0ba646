//! What programs see that speak the native protocol with `manyhands serve`.
//!
//! [`checks`] is the list that every client has to pass, whatever it is written in: a client is a
//! [`Face`](face::Face), which does what a check says and tells what came of it. [`hostile`] says what
//! no client would.

#![cfg(unix)]
#![expect(clippy::indexing_slicing, reason = "a helper that panics fails its test, as it should")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(dead_code, reason = "shares what the other behaviour tests need")]

mod checks;
mod face;
#[path = "../attacks/honest.rs"]
mod honest;
mod hostile;
#[path = "../it/peer.rs"]
mod peer;
mod python;
mod raw;
mod rust;
#[path = "../it/support.rs"]
mod support;

/// Makes a test of every check, for one kind of client.
macro_rules! conformance {
    ($face:ident, $($check:ident,)*) => {
        $(#[test] fn $check() { crate::checks::$check(&crate::face::World::of::<$face>()) })*
    };
}

/// The client in plain Python.
mod plain_python {
    use crate::python::PlainPython;

    crate::checks::each!(conformance, PlainPython);
}

/// The async client in Rust.
mod async_rust {
    use crate::rust::AsyncRust;

    crate::checks::each_of_programs!(conformance, AsyncRust);
    crate::checks::each_in_order!(conformance, AsyncRust);
    crate::checks::each_of_one_caller!(conformance, AsyncRust);
}

/// The blocking client in Rust.
mod blocking_rust {
    use crate::rust::blocking::BlockingRust;

    crate::checks::each_of_programs!(conformance, BlockingRust);
}

/// The same of the Python package, which has to be built and installed first.
macro_rules! conformance_of_package {
    ($face:ident, $($check:ident,)*) => {
        $(
            #[test]
            #[ignore = "needs a Python with the package: every_python.py runs this"]
            fn $check() { crate::checks::$check(&crate::face::World::of::<$face>()) }
        )*
    };
}

/// The clients of the Python package.
mod packaged {
    /// The blocking one. Its calls at one time are on threads, in no order.
    mod blocking {
        use crate::python::BlockingPython;

        crate::checks::each_of_programs!(conformance_of_package, BlockingPython);
        crate::checks::each_of_package!(conformance_of_package, BlockingPython);
        crate::checks::each_of_one_caller!(conformance_of_package, BlockingPython);
    }

    /// That for event loops.
    mod awaited {
        use crate::python::AwaitedPython;

        crate::checks::each_of_programs!(conformance_of_package, AwaitedPython);
        crate::checks::each_of_package!(conformance_of_package, AwaitedPython);
        crate::checks::each_of_one_caller!(conformance_of_package, AwaitedPython);
        crate::checks::each_in_order!(conformance_of_package, AwaitedPython);
    }
}

pub(crate) use {conformance, conformance_of_package};
