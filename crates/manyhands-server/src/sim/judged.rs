//! What the judge of histories says of some that are right and some that are not.

use super::history::{Counts, judge};

const STRICT: &str =
    "0 queue tasks results=results dead=dead\n0 queue results\n0 queue dead sorted";
const PLAIN: &str = "0 queue tasks dead=dead\n0 queue results\n0 queue dead sorted";

/// Time is the number of the line.
fn judged(queues: &str, lines: &[&str]) -> Result<Counts, String> {
    let lines = lines.iter().enumerate().map(|(at, line)| format!("{} {line}", at + 1));
    let lines: Vec<_> = queues.lines().map(str::to_owned).chain(lines).collect();
    judge(lines.iter().map(String::as_str))
}

#[track_caller]
fn is_wrong(queues: &str, lines: &[&str], why: &str) {
    let wrong = judged(queues, lines).expect_err("it is wrong");
    assert!(wrong.contains(why), "{wrong}");
}

const PUT_A: [&str; 3] = ["session p p", "put p a tasks A", "yes a"];
const TAKEN: [&str; 3] = ["session w w", "get w b tasks", "yes b A"];
const ANSWERED: [&str; 2] = ["put w c results R of=A", "yes c"];

fn all<'l>(parts: &[&[&'l str]]) -> Vec<&'l str> {
    parts.concat()
}

#[test]
fn a_task_whose_result_is_there_is_accounted_for() {
    let lines = all(&[&PUT_A, &TAKEN, &ANSWERED, &["left results R"]]);
    let counts = judged(STRICT, &lines).unwrap();
    assert_eq!((counts.accepted, counts.results, counts.left), (2, 1, 1));
}

#[test]
fn a_task_that_nobody_has_is_lost() {
    is_wrong(PLAIN, &PUT_A, "A of tasks: lost");
    is_wrong(STRICT, &all(&[&PUT_A, &TAKEN]), "A of tasks: lost");
    is_wrong(PLAIN, &all(&[&PUT_A, &TAKEN, &["killed w"]]), "A of tasks: lost");
}

#[test]
fn a_task_that_nobody_was_told_of_may_be_there_or_not() {
    assert!(judged(PLAIN, &PUT_A[..2]).is_ok());
    assert!(judged(PLAIN, &all(&[&PUT_A[..2], &["left tasks A"]])).is_ok());
}

#[test]
fn who_is_told_last_is_not_always_who_was_given_it_last() {
    let asked = ["session v v", "get v c tasks"];
    let told_late = ["yes c A", "session w x"];
    // It may have moved to the new session of w, which has settled it.
    assert!(judged(PLAIN, &all(&[&PUT_A, &asked, &TAKEN, &told_late])).is_ok());
    // Here v was given it after w.
    let lines = all(&[&PUT_A, &TAKEN, &asked, &told_late]);
    is_wrong(PLAIN, &lines, "A of tasks: lost");
}

#[test]
fn what_was_refused_or_never_put_is_not_there() {
    let refused = ["session p p", "put p a tasks A", "no a Full", "left tasks A"];
    is_wrong(PLAIN, &refused, "it was refused");
    is_wrong(PLAIN, &["left tasks A"], "nobody has put it");
}

#[test]
fn a_task_with_two_results_was_done_twice() {
    let again = ["put w d results S of=A", "yes d", "left results R", "left results S"];
    is_wrong(STRICT, &all(&[&PUT_A, &TAKEN, &ANSWERED, &again]), "it has 2 results");
}

#[test]
fn a_task_that_was_done_is_not_there_again() {
    let left = ["left results R", "left tasks A"];
    is_wrong(STRICT, &all(&[&PUT_A, &TAKEN, &ANSWERED, &left]), "has a result and is there again");
    is_wrong(PLAIN, &all(&[&PUT_A, &TAKEN, &ANSWERED, &left]), "it was done and is there again");
    let given = ["left results R", "session v v", "get v d tasks", "yes d A"];
    is_wrong(STRICT, &all(&[&PUT_A, &TAKEN, &ANSWERED, &given]), "after its result was kept");
    is_wrong(PLAIN, &all(&[&PUT_A, &TAKEN, &["exited w"], &given[1..]]), "after it was done");
}

#[test]
fn a_later_put_does_not_go_first() {
    let put_b = ["put p x tasks B", "yes x"];
    let took_b = ["session w w", "get w y tasks", "yes y B", "get w z tasks", "no z Empty"];
    let lines = all(&[&PUT_A, &put_b, &took_b, &["left tasks A"]]);
    is_wrong(PLAIN, &lines, "A of tasks: B, put later, went before");
    // Unless a client that died may have been given the first.
    let excused =
        all(&[&PUT_A, &put_b, &["session v v", "get v u tasks"], &took_b, &["left tasks A"]]);
    assert_eq!(judged(PLAIN, &excused).map(|counts| counts.delivered), Ok(1));
}
