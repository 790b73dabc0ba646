//! The tests of native sessions find what is planted in them.

use std::panic;

use super::{bad, credit, durable, order};
use crate::planted::{self, Bug};

#[test]
fn every_bug_that_is_planted_in_native_sessions_is_found() {
    let found_by: [(Bug, fn()); 6] = [
        (
            Bug::SentBeforeDurable,
            durable::a_put_is_told_once_it_is_on_the_disk_and_others_are_told_before,
        ),
        (Bug::UnsentStaysOut, bad::what_a_client_did_not_read_goes_back_when_it_is_gone),
        (Bug::SentNotSettled, durable::what_was_taken_for_good_and_told_of_is_gone),
        (Bug::PutOvertakes, order::a_put_behind_one_that_waits_comes_after_all_of_its_items),
        (
            Bug::TakenOvertakesSettled,
            durable::what_is_settled_before_the_next_get_is_durable_once_that_is_told,
        ),
        (Bug::PushToClosedLost, credit::what_is_pushed_while_its_handle_is_closed_goes_back),
    ];
    assert!(Bug::NATIVE.iter().all(|bug| found_by.iter().any(|(found, _)| found == bug)));
    for (bug, test) in found_by {
        planted::plant(Some(bug));
        let found = panic::catch_unwind(test);
        planted::plant(None);
        assert!(found.is_err(), "{bug:?} was not found");
    }
}
