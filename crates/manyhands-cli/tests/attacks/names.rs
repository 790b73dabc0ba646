//! Names and references that nobody needs: they do not stay for ever.

use crate::honest::Honest;
use crate::peer::{Peer, assert_is, has, request, text};
use crate::support::{Server, wait_until};

#[test]
fn names_that_were_made_up_make_room_for_others() {
    let options = ["--queues-max", "100", "--unused-timeout", "1"];
    let server = Server::with_options(&options);
    let honest = Honest::beside(&server);
    let kept = Peer::create(&server, "kept");
    let mut session = Peer::session(&server);
    assert_is(&session.ask(&request(Some(&kept), "put", &[text("accepted")])), "#RETURN");
    // References to them are never given back, and none opens a session.
    let refused = (0..200).filter(|name| {
        let answer = Peer::control(&server, "create", &[text(&format!("typo{name}"))]);
        has(&answer, "which is the limit")
    });
    assert_eq!(refused.count(), 200 - 98, "beside those of the honest client and the kept one");
    let is_made = || {
        let answer = Peer::control(&server, "create", &[text("needed")]);
        has(&answer, "#RETURN").then_some(())
    };
    assert!(wait_until(is_made).is_some(), "there is room for a new name again");
    let got = session.ask(&request(Some(&kept), "get", &[]));
    assert!(has(&got, "accepted"), "what was put is there, and its ident good");
    honest.told("a hundred names made up");
}

#[test]
fn references_that_nobody_uses_do_not_stay() {
    let server = Server::with_options(&["--unused-timeout", "1"]);
    let honest = Honest::beside(&server);
    let ident = Peer::create(&server, "tasks");
    for _ in 0..2000 {
        Peer::create(&server, "tasks");
    }
    let are_gone = || {
        let answer = Peer::control(&server, "number_of_objects", &[]);
        // Only the honest client's own is left: `K`, a byte, the end of the tuple.
        answer.ends_with(b"K\x01\x86.").then_some(())
    };
    assert!(wait_until(are_gone).is_some(), "the others are gone");
    let mut late = Peer::session(&server);
    assert_is(&late.ask(&request(Some(&ident), "put", &[text("late")])), "#RETURN");
    honest.told("two thousand references without a session");
}
