//! Why a request, an item or a settlement has no effect.

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal $text:literal,)*) => {
        /// Why a request, an item or a settlement has no effect. The numbers never change.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[repr(u16)]
        pub enum Code { $($(#[$doc])* $name = $number,)* }

        impl Code {
            /// All of them, by their numbers.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// As it is called in the protocol's description.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The code of this number, if there is one.
            #[must_use]
            pub const fn of_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
        }
    };
}

codes! {
    /// No task came in time.
    Empty = 1 "empty",
    /// No slot came free in time, or there is no room for more tasks.
    Full = 2 "full",
    /// The queue takes, or has, no more items.
    ShutDown = 3 "shut_down",
    /// No queue has this name.
    UnknownQueue = 4 "unknown_queue",
    /// Somebody else has had the task since, or it was given up.
    Stale = 5 "stale",
    /// This token settled its task before.
    SettledBefore = 6 "settled_before",
    /// The queue demands a result with the ack.
    NoResult = 7 "no_result",
    /// There is no queue for results.
    NoResults = 8 "no_results",
    /// The queue takes nothing but results of tasks in hand.
    Unasked = 9 "unasked",
    /// A priority on a queue that has no order, or an item that has no place in one.
    NoOrder = 10 "no_order",
    /// The next task is a pickle that the client cannot read; it stays.
    Unreadable = 11 "unreadable",
    /// More `task_done` than tasks.
    TooMany = 12 "too_many",
    /// The request was cancelled before it was decided.
    Cancelled = 13 "cancelled",
    /// The body is not what the protocol says.
    Malformed = 14 "malformed",
    /// No request has this op.
    UnknownOp = 15 "unknown_op",
    /// The body, or the batch, is longer than is allowed.
    TooLong = 16 "too_long",
    /// A request in flight has this id.
    IdInUse = 17 "id_in_use",
    /// No queue is open under this handle.
    NoSuchHandle = 18 "no_such_handle",
    /// Another queue is open under this handle, or it is too high.
    HandleInUse = 19 "handle_in_use",
    /// More credit than is allowed.
    TooMuchCredit = 20 "too_much_credit",
    /// The server's options forbid it.
    Refused = 21 "refused",
    /// More requests in flight than are allowed.
    TooManyPending = 22 "too_many_pending",
    /// A queue of this name has other options.
    Differs = 23 "differs",
    /// The options are none.
    BadOptions = 24 "bad_options",
    /// An earlier settlement of this task waits for room for its result.
    Waits = 25 "waits",
    /// Work on the task has begun, or it was not pushed: it does not go back for nothing.
    Started = 26 "started",
    /// Somebody uses the queue that was to be forgotten.
    InUse = 27 "in_use",
}

impl Code {
    /// Its number.
    #[must_use]
    pub const fn number(self) -> u16 {
        self as u16
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
