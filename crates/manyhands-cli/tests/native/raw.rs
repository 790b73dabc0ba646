//! A native session made of raw bytes: it can say what no client would.

use crate::peer::Peer;
use crate::support::Server;

pub(crate) const OPEN: u8 = 0x01;
pub(crate) const PING: u8 = 0x12;
pub(crate) const DONE: u8 = 0x80;
pub(crate) const SIZE: u8 = 0x0a;
pub(crate) const SIZES: u8 = 0x86;
pub(crate) const PUT: u8 = 0x03;
pub(crate) const GET: u8 = 0x04;
pub(crate) const SETTLE: u8 = 0x05;
pub(crate) const ADDED: u8 = 0x83;
pub(crate) const TASKS: u8 = 0x84;
pub(crate) const SETTLED: u8 = 0x85;

/// All ones: for ever, or not said.
pub(crate) const NEVER: [u8; 8] = [0xff; 8];

/// A session made of raw bytes.
pub(crate) struct Raw {
    pub(crate) peer: Peer,
    pub(crate) limits: [u32; 5],
}

/// What came back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) op: u8,
    pub(crate) id: u32,
    pub(crate) count: u32,
    pub(crate) body: Vec<u8>,
}

pub(crate) fn hello(oldest: u16, newest: u16) -> Vec<u8> {
    [b"\0mnative", &oldest.to_le_bytes()[..], &newest.to_le_bytes(), &[5, 0, 3, 0], b"raw"].concat()
}

/// The bytes of a frame.
pub(crate) fn frame(op: u8, queue: u16, id: u32, count: u32, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).unwrap();
    [&header(len, op, queue, id, count)[..], body].concat()
}

pub(crate) fn header(len: u32, op: u8, queue: u16, id: u32, count: u32) -> Vec<u8> {
    let [len, id, count] = [len, id, count].map(u32::to_le_bytes);
    [&len[..], &[op, 0], &queue.to_le_bytes(), &id, &count].concat()
}

/// An item that is bytes.
pub(crate) fn item(content: &[u8]) -> Vec<u8> {
    let len = u32::try_from(content.len()).unwrap().to_le_bytes();
    [&[0, 0, 0, b'B'][..], &len, content].concat()
}

/// The body of a `get` of up to so many tasks.
pub(crate) fn get_of(wait: [u8; 8], max: u32) -> Vec<u8> {
    [&wait[..], &NEVER, &max.to_le_bytes(), &[0; 4]].concat()
}

impl Raw {
    pub(crate) fn connect(server: &Server) -> Self {
        let mut peer = Peer::login(server);
        let answer = peer.ask(&hello(1, 1));
        assert!(answer.starts_with(b"\0mnative\x01\0"), "{}", answer.escape_ascii());
        let number = |at: usize| u32::from_le_bytes(answer[at..at + 4].try_into().unwrap());
        Self { peer, limits: [12, 16, 20, 24, 28].map(number) }
    }

    /// With the queue of this name under the handle 1.
    pub(crate) fn with(server: &Server, queue: &str) -> Self {
        let mut raw = Self::connect(server);
        let opened = raw.ask(&frame(OPEN, 1, 1, 0, queue.as_bytes()));
        assert_eq!(opened.op, 0x82, "{opened:?}");
        raw
    }

    pub(crate) fn reply(&mut self) -> Frame {
        let header = self.peer.bytes(16).expect("the session goes on");
        let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let body = self.peer.bytes(number(0).try_into().unwrap()).expect("the frame is whole");
        Frame { op: header[4], id: number(8), count: number(12), body }
    }

    pub(crate) fn ask(&mut self, bytes: &[u8]) -> Frame {
        self.peer.send(bytes);
        self.reply()
    }

    pub(crate) fn goes_on(&mut self) {
        let pong = self.ask(&frame(PING, 0, 0xffff, 0, b""));
        assert_eq!((pong.op, pong.id), (DONE, 0xffff), "{pong:?}");
    }

    pub(crate) fn qsize(&mut self) -> u64 {
        let size = self.ask(&frame(SIZE, 1, 0xfffe, 0, b""));
        assert_eq!(size.op, SIZES);
        u64::from_le_bytes(size.body[..8].try_into().unwrap())
    }
}

/// The body of a put of items that does not wait.
pub(crate) fn put_of(items: &[u8]) -> Vec<u8> {
    [&[0; 8][..], items].concat()
}

/// A get of up to so many tasks, leased as long as their queue says, which waits for `wait`.
pub(crate) fn lease_of(id: u32, wait: [u8; 8], max: u32) -> Vec<u8> {
    let mut get = frame(GET, 1, id, 0, &get_of(wait, max));
    get[5] = 1;
    get
}

/// The token of the first task that a get has leased.
pub(crate) fn token_of(tasks: &Frame) -> [u8; 28] {
    assert_eq!((tasks.op, tasks.body[0] & 1), (TASKS, 1), "{tasks:?}");
    tasks.body[3..31].try_into().unwrap()
}

/// A settlement of this kind, with a reason and what follows it.
pub(crate) fn settlement(kind: u8, token: &[u8], reason: &[u8], result: &[u8]) -> Vec<u8> {
    let len = u16::try_from(reason.len()).unwrap().to_le_bytes();
    [&[kind, 0][..], &len, token, &[0; 8], reason, result].concat()
}
