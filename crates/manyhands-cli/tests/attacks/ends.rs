//! Many clients that leave at one time: the verdicts on them take neither the stack nor the engine.

use crate::honest::Honest;
use crate::support::Server;

#[test]
fn an_honest_client_works_beside_nobody() {
    let server = Server::with_options(&[]);
    let waited = Honest::beside(&server).told("no attack");
    assert!(waited.quiet > std::time::Duration::ZERO && waited.rounds < 1_000_000);
}
