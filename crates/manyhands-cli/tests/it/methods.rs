//! A queue has the methods and parameters of CPython's, whoever asks.

use crate::support::{Server, for_each_python, pythons};

#[test]
fn a_queue_has_cpythons_methods_and_no_others() {
    let pythons: Vec<_> = pythons().iter().filter(|python| !python.is_2()).cloned().collect();
    for_each_python(&pythons, |python| {
        let server = Server::start(&["tasks"]);
        python.script("methods.py").server(&server).run();
    });
}
