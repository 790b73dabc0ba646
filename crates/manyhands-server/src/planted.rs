//! Bugs that the simulator has to find: it is only worth something if it does.
//!
//! A place in the product asks `planted!(Bug)`, which is `false` in every build but that of the
//! tests. `docs/testing.md` lists them.

/// Whether this bug is planted.
#[cfg(not(test))]
macro_rules! planted {
    ($bug:ident) => {
        false
    };
}

/// Whether this bug is planted.
#[cfg(test)]
macro_rules! planted {
    ($bug:ident) => {
        $crate::planted::is($crate::planted::Bug::$bug)
    };
}

#[cfg(test)]
macro_rules! bugs {
    ($($(#[doc = $of:literal])* $part:ident: $($(#[doc = $text:literal])* $bug:ident,)*;)*) => {
        /// What can be planted.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Bug {
            $($($(#[doc = $text])* $bug,)*)*
        }

        impl Bug {
            $($(#[doc = $of])* pub(crate) const $part: &[Self] = &[$(Self::$bug,)*];)*
        }
    };
}

#[cfg(test)]
bugs! {
    /// In the engine and its queues.
    ENGINE:
    /// A client that is gone stays in the line of those that wait.
    GhostGet,
    /// A late result is kept, whoever has the task by now.
    LateResultKept,
    /// A late result is thrown away, and its worker told that it was kept.
    LateResultDropped,
    /// A result is accepted and its task not settled.
    ResultWithoutAck,
    /// A result settles the task that was taken last.
    ResultOfTheNewest,
    /// The result of a worker that was cut off and comes back settles nothing.
    CutOffAnswersNothing,
    /// A put that was refused keeps its task for ever.
    RefusedResultKeepsTask,
    /// A key is forgotten at once.
    NoDedup,
    /// The end of a session is never judged.
    NoVerdict,
    /// A reference goes though a session uses it.
    UsedReferenceExpires,
    /// Whoever left of his own accord has settled what he had, results declared or not.
    ExitSettlesAll,
    /// What a session had in hand is lost when another one takes over.
    HandLostInMove,
    /// A task that failed too often is tried again.
    RetryNotCapped,
    /// A dead letter is dropped.
    DeadLetterLost,
    /// A reply that was not read costs an attempt.
    UnreadCostsAttempt,
    /// A task that comes back is dropped if another one waits.
    ReturnedDropped,
    /// A task that comes back stands behind all others.
    ReturnedToTheEnd,
    /// A task that is with somebody counts as ready.
    SizeCountsLeased,
    /// The first in line is served and stays in line.
    ServedTwice,
    /// A delay is ignored.
    DelayIgnored,
    /// A task that is out of date is handed out.
    ExpiryIgnored,
    /// A time limit of a queue is not enforced.
    MaxRunIgnored,
    /// Two leases of one queue have one number.
    EpochTwice,
    /// The timer is not told of an earlier deadline.
    TimerNotTold,
    /// The next get settles the task before, results declared or not.
    GetSettlesAll,
    /// `task_done` settles nothing.
    DoneSettlesNothing,
    /// Results come out as they come in, though their order was asked for.
    ResultsOutOfOrder,
    /// Results wait for that of a task that was given up.
    GivenUpIsWaitedFor,
    /// `join` ends one task too early.
    JoinTooEarly,
    /// A stale ack settles the task of whoever has it by now.
    StaleAckKept,
    /// A token whose result was refused counts as one that settled its task.
    RefusedCountsAsSettled,
    /// A token whose result waits for room is said to have settled its task.
    AnsweringIsSettled,
    /// A lease whose result found no room loses its time limit.
    HoldLostOnFull,
    /// A task that its worker gives back as failed has not failed.
    NackIsFree,
    /// A lease is said to last longer, and does not.
    ExtendIgnored,
    /// Leases that came beside the first of a batch are in nobody's hand.
    BatchNotHeld,
    /// What was leased by a session that ended stays out.
    LeasesNotGivenBack,
    /// A dead letter that finds no room where it came from is dropped.
    RedriveDropsLetter,
    /// A purge forgets how often tasks failed that are with somebody.
    PurgeForgetsAttempts,
    /// A purge lets the order of results begin anew.
    TurnsBeginAnew,
    /// A task that was pushed and not started has used up an attempt when its holder is gone.
    UnstartedUsesAttempt,
    /// Whoever has credit left stays the first in line.
    CreditJumpsLine,
    /// A credit is never used up.
    PushBeyondCredit,
    /// Tasks that were started are asked for again.
    RecallTakesStarted,
    /// A task that is pushed to somebody with work stays there while others have nothing to do.
    PushedBehindWorkStays,
    /// What was pushed to a session that ended is lost.
    LostPush,
    /// The first settlement that is refused ends its batch.
    SettleManyStopsAtError,
    ;

    /// In what the engine keeps on a disk.
    DISK:
    /// A call is answered before what it did is durable.
    ReplyBeforeDurable,
    /// A call that waited is answered before what it did is durable.
    WokenBeforeDurable,
    /// A result and the settlement of its task are two steps.
    ResultAndAckApart,
    /// Keys are forgotten by a restart.
    KeyNotKept,
    /// `task_done` is forgotten by a restart.
    DoneNotKept,
    /// A task that was out of date is there again after a restart.
    ExpiryNotKept,
    /// A restart forgets how often a task failed.
    FailuresForgotten,
    /// A restart forgets the rest of a delay.
    DelayForgotten,
    /// A restart forgets dead letters.
    LetterForgotten,
    /// A restart forgets dead letters that are back where they came from.
    RedrivenForgotten,
    /// A restart forgets when dead letters are out of date, and those that went back.
    ExpiryForgotten,
    /// Leases have the numbers of those before a restart.
    EpochOfLeasesAgain,
    /// A restart forgets leases by token.
    LeaseForgotten,
    /// After a restart a lease has no time limit.
    HoldForgotten,
    /// A restart forgets that a lease was extended.
    ExtensionForgotten,
    /// Whoever waited for a lease is told of it before it is written.
    LeaseToldTooSoon,
    /// What the last change of a step need not wait for, the others need not wait for either.
    LastChangeDecides,
    /// A restart forgets which tokens settled their tasks.
    SettledForgotten,
    /// A restart forgets after what delay a task that failed comes back.
    NackDelayForgotten,
    /// That a dead letter is back, and that it left, are two steps.
    RedriveApart,
    /// After a purge a restart forgets what was with somebody.
    PurgeForgetsLeased,
    /// A checkpoint does not tell what got another place while it was written.
    MovedNotTold,
    /// An ack is not written while a checkpoint is.
    AckBesideCheckpointLost,
    /// A body is read where it is copied to before the copy is written.
    CopyReadTooSoon,
    /// A task that was settled while its body was copied is there again.
    StragglerRevived,
    /// The body of a task that is handed out is read whether or not it is written.
    ReadBeforeWritten,
    /// A checkpoint leaves keys out.
    CheckpointWithoutKeys,
    /// A checkpoint knows of a task only where it is.
    CheckpointWithoutFacts,
    /// A task is pushed before its put is durable.
    PushBeforeDurable,
    ;

    /// In native sessions.
    NATIVE:
    /// A reply is sent before what it says is durable.
    SentBeforeDurable,
    /// A task stays out whose reply did not reach the socket.
    UnsentStaysOut,
    /// A task that was taken for good is not settled when its reply is sent.
    SentNotSettled,
    /// A put goes before the last items of one that waits.
    PutOvertakes,
    /// A task that was pushed when its handle was closed stays out.
    PushToClosedLost,
    /// A client has the next task before what settled the one before is durable.
    TakenOvertakesSettled,
    ;

    /// In native sessions as their clients see them.
    SESSIONS:
    /// The reply to a put has the id of a request that waits.
    AnswerOfAnother,
    /// The id of a request that has waited stays in use.
    IdStaysInUse,
    /// Settlements are told before they are durable.
    SettledTooSoon,
    /// Of tasks that are pushed together, those behind the first stay with the session.
    PushRestForgotten,
    /// A client that reads again has no credit any more.
    CreditNotRestored,
    /// A client is not told which tasks are asked for.
    RecallNotTold,
    ;

    /// In the journal.
    JOURNAL:
    /// A frame counts as synced once it is written.
    AckBeforeSync,
    /// Whoever writes his own frame counts it as synced.
    NotSyncedHere,
    /// A sync that failed counts as one.
    SyncErrorIgnored,
    /// After a failure it goes on as if nothing had been.
    FailureForgotten,
    /// A torn frame is taken for a whole one.
    TornFrameRead,
    /// The name of a new segment is not made durable.
    NameNotSynced,
    /// The end of a segment is not synced before the next one begins.
    SegmentEndNotSynced,
    /// What was seen at a start and never synced is taken for durable.
    TailNotRewritten,
    /// A start has the number of the one before.
    EpochAgain,
    /// Whoever waits for a later frame is told of an earlier one.
    AllToldOfOne,
    /// A frame says that it was synced with those before it.
    SealsClaimTooMuch,
    /// A segment gets its name before its header is synced.
    HeaderNotSynced,
    /// Puts may use what is kept for settlements.
    ReserveGivenAway,
    /// A checkpoint is there before what it covers is durable.
    CheckpointAhead,
    /// A checkpoint is named before it is synced.
    CheckpointNotSynced,
    /// A checkpoint lets go of segments that hold live bodies.
    FreedTooEarly,
    ;
}

#[cfg(test)]
std::thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug in all that this thread does from now on, or takes it out again.
#[cfg(test)]
pub(crate) fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// What is planted in this thread.
#[cfg(test)]
pub(crate) fn planted() -> Option<Bug> {
    PLANTED.get()
}

#[cfg(test)]
pub(crate) fn is(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}
