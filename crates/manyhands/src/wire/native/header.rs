//! The 16 bytes in front of every body.

use bytes::{BufMut, BytesMut};

use crate::wire::frame::{self, FrameError};

/// Length of a header, in bytes.
pub const HEADER_LEN: usize = 16;

/// What stands in front of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// Length of the body, in bytes.
    pub len: u32,
    /// What the frame is: an [`Op`] if it is known.
    pub op: u8,
    /// See [`flag`].
    pub flags: u8,
    /// Which queue and which request it is about.
    pub route: Route,
    /// How many items the body has.
    pub count: u32,
}

/// Which queue and which request a frame is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Route {
    /// The handle under which the client has opened the queue, or 0.
    pub queue: u16,
    /// The client's number of the request.
    pub id: u32,
}

/// Bits of [`Header::flags`].
pub mod flag {
    /// put: answer with the numbers of the tasks.
    pub const NUMBERED: u8 = 1;
    /// get: lease the tasks, instead of taking them for good.
    pub const LEASED: u8 = 1;
    /// get: with what is known of each.
    pub const INFORMED: u8 = 2;
    /// credit: ends it.
    pub const END: u8 = 1;
    /// shutdown: also drops what is in the queue.
    pub const IMMEDIATE: u8 = 1;
    /// drop: also a queue that is in use.
    pub const FORCED: u8 = 1;
    /// text, in reply to list: there are more.
    pub const MORE: u8 = 1;
    /// tasks: pushed by credit, not in reply to a request.
    pub const PUSHED: u8 = 1 << 7;
}

macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// What a frame is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Op { $($(#[$doc])* $name = $number,)* }

        impl Op {
            /// The op of this number, if there is one.
            #[must_use]
            pub const fn of_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
        }
    };
}

ops! {
    /// A client opens a queue.
    Open = 0x01,
    /// And closes it.
    Close = 0x02,
    /// Adds items.
    Put = 0x03,
    /// Takes or leases tasks.
    Get = 0x04,
    /// Says what became of leased tasks.
    Settle = 0x05,
    /// Says how many tasks may be pushed.
    Credit = 0x06,
    /// Ends a request that waits.
    Cancel = 0x07,
    /// Counts tasks as done for `join`.
    TaskDone = 0x08,
    /// Waits until all tasks are done.
    Join = 0x09,
    /// Asks how many items there are.
    Size = 0x0a,
    /// Asks for what is known of queues.
    List = 0x0b,
    /// Looks at tasks without taking them.
    Peek = 0x0c,
    /// Moves dead letters back.
    Redrive = 0x0d,
    /// Drops what is ready or delayed.
    Purge = 0x0e,
    /// Shuts a queue down.
    Shutdown = 0x0f,
    /// Forgets a queue.
    Drop = 0x10,
    /// Declares a queue.
    Configure = 0x11,
    /// Asks whether the server is there.
    Ping = 0x12,
    /// Ends a task, whoever has it.
    Revoke = 0x13,
    /// A request is done, and there is no more to say.
    Done = 0x80,
    /// A number.
    Count = 0x81,
    /// The properties of a queue that was opened.
    Opened = 0x82,
    /// What became of items that were put.
    Added = 0x83,
    /// Tasks.
    Tasks = 0x84,
    /// What became of settlements.
    Settled = 0x85,
    /// The size of a queue.
    Sizes = 0x86,
    /// A JSON text.
    Text = 0x87,
    /// Tasks that were looked at.
    Peeked = 0x88,
    /// The server asks for pushed tasks back.
    Recall = 0x90,
    /// A request had no effect.
    Error = 0xff,
}

impl Op {
    /// Whether it is what a client asks, and not what a server answers.
    #[must_use]
    pub const fn is_request(self) -> bool {
        (self as u8) < Self::Done as u8
    }
}

impl Header {
    /// Appends it.
    pub fn write(&self, out: &mut BytesMut) {
        out.put_slice(&self.bytes());
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> [u8; HEADER_LEN] {
        let Self { len, op, flags, route: Route { queue, id }, count } = *self;
        let [l0, l1, l2, l3] = len.to_le_bytes();
        let [q0, q1] = queue.to_le_bytes();
        let [i0, i1, i2, i3] = id.to_le_bytes();
        let [c0, c1, c2, c3] = count.to_le_bytes();
        [l0, l1, l2, l3, op, flags, q0, q1, i0, i1, i2, i3, c0, c1, c2, c3]
    }
}

impl From<[u8; HEADER_LEN]> for Header {
    fn from(bytes: [u8; HEADER_LEN]) -> Self {
        let [l0, l1, l2, l3, op, flags, q0, q1, i0, i1, i2, i3, c0, c1, c2, c3] = bytes;
        Self {
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            op,
            flags,
            route: Route {
                queue: u16::from_le_bytes([q0, q1]),
                id: u32::from_le_bytes([i0, i1, i2, i3]),
            },
            count: u32::from_le_bytes([c0, c1, c2, c3]),
        }
    }
}

impl frame::Header for Header {
    fn parse(buf: &[u8]) -> Result<Option<(usize, Self)>, FrameError> {
        let bytes = buf.first_chunk::<HEADER_LEN>();
        Ok(bytes.map(|bytes| (HEADER_LEN, Self::from(*bytes))))
    }

    fn body_len(&self) -> u64 {
        self.len.into()
    }
}
