//! A client made of raw bytes: it can do what no Python would, and it shares no code with the product.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::support::{KEY, Server};

/// A peer that hears nothing for this long fails its test.
const PATIENCE: Duration = Duration::from_secs(60);

/// What our side of the handshake asks the server to prove.
const CHALLENGE: &[u8] = b"{sha256}forty bytes of a challenge, none random.";

/// One connection.
#[derive(Debug)]
pub(crate) struct Peer {
    stream: TcpStream,
}

impl Peer {
    /// Connected, nothing said.
    pub(crate) fn connect(server: &Server) -> Self {
        Self::connect_from(server, "127.0.0.1")
    }

    /// The same from another address of this machine.
    pub(crate) fn connect_from(server: &Server, host: &str) -> Self {
        let address = |host: &str, port| {
            SockAddr::from(SocketAddr::new(host.parse().expect("an address"), port))
        };
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("there are sockets");
        socket.bind(&address(host, 0)).expect("it is an address of this machine");
        socket.connect(&address("127.0.0.1", server.port())).expect("the server listens");
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).expect("the time-out is not zero");
        stream.set_nodelay(true).expect("the socket is open");
        Self { stream }
    }

    /// Through the handshake; the control request comes next.
    pub(crate) fn login(server: &Server) -> Self {
        Self::login_with(server, KEY)
    }

    /// Through the handshake of a server with another key.
    pub(crate) fn login_with(server: &Server, key: &[u8]) -> Self {
        Self::connect(server).authenticated(key)
    }

    /// Through the handshake from another address of this machine. Each address has ports of its
    /// own, so that a test can make more connections than one has.
    #[allow(dead_code, reason = "for attacks; other tests are few clients")]
    pub(crate) fn login_from(server: &Server, host: &str) -> Self {
        Self::connect_from(server, host).authenticated(KEY)
    }

    fn authenticated(mut self, key: &[u8]) -> Self {
        self.answer_challenge(key);
        assert_eq!(self.frame().as_deref(), Some(&b"#WELCOME#"[..]));
        self.send_frame(&[b"#CHALLENGE#", CHALLENGE].concat());
        let proof = self.frame().expect("the server answers our challenge");
        assert_eq!(proof, [&b"{sha256}"[..], &mac(key, CHALLENGE)].concat());
        self.send_frame(b"#WELCOME#");
        self
    }

    /// Reads the server's challenge and answers it with `key`.
    pub(crate) fn answer_challenge(&mut self, key: &[u8]) {
        let challenge = self.frame().expect("the server speaks first");
        let message = challenge.strip_prefix(b"#CHALLENGE#").expect("a challenge");
        self.send_frame(&[&b"{sha256}"[..], &mac(key, message)].concat());
    }

    /// A session: calls to queues come next.
    pub(crate) fn session(server: &Server) -> Self {
        let mut peer = Self::login(server);
        let reply = peer.ask(&request(None, "accept_connection", &[text("MainProcess")]));
        assert_is(&reply, "#RETURN");
        peer
    }

    /// One control request on a connection of its own, and its reply.
    pub(crate) fn control(server: &Server, name: &str, args: &[Vec<u8>]) -> Vec<u8> {
        Self::login(server).ask(&request(None, name, args))
    }

    /// The ident of a fresh proxy of the queue `name`.
    pub(crate) fn create(server: &Server, name: &str) -> String {
        Self::login(server).into_proxy(name)
    }

    /// Asks for a fresh proxy of the queue `name`, as the one request of this connection: its ident.
    pub(crate) fn into_proxy(mut self, name: &str) -> String {
        let reply = self.ask(&request(None, "create", &[text(name)]));
        assert_is(&reply, "#RETURN");
        created_ident(&reply).expect("the reply has an ident")
    }

    /// Sends a request and returns the reply.
    pub(crate) fn ask(&mut self, body: &[u8]) -> Vec<u8> {
        self.send_frame(body);
        self.frame().expect("the server replies")
    }

    pub(crate) fn send_frame(&mut self, body: &[u8]) {
        let length = u32::try_from(body.len()).expect("test bodies are short");
        self.send(&[&length.to_be_bytes(), body].concat());
    }

    /// Sends raw bytes. That the server may have hung up meanwhile shows when we read.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        if let Err(error) = self.stream.write_all(bytes) {
            assert!(is_hang_up(&error), "{error}");
        }
    }

    /// The next frame; `None` when the server hung up.
    pub(crate) fn frame(&mut self) -> Option<Vec<u8>> {
        let mut length = [0; 4];
        self.read_or_end(&mut length)?;
        let mut body = vec![0; usize::try_from(u32::from_be_bytes(length)).expect("64 bits")];
        self.read_or_end(&mut body)?;
        Some(body)
    }

    /// So many bytes; `None` when the server hung up.
    #[allow(dead_code, reason = "for frames of other protocols")]
    pub(crate) fn bytes(&mut self, len: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read_or_end(&mut bytes)?;
        Some(bytes)
    }

    /// Everything that the server still says after we said our last.
    pub(crate) fn last_words(mut self) -> Vec<u8> {
        if let Err(error) = self.stream.shutdown(Shutdown::Write) {
            assert!(is_hang_up(&error), "{error}");
        }
        self.rest()
    }

    /// Everything that the server says until it hangs up of its own accord.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        let mut words = Vec::new();
        match self.stream.read_to_end(&mut words) {
            Err(error) if !is_hang_up(&error) => panic!("the server does not hang up: {error}"),
            _ => words,
        }
    }

    /// `Some` if the server has hung up by now.
    #[allow(dead_code, reason = "for attacks; other tests wait for the end")]
    pub(crate) fn is_cut_off(&mut self) -> Option<()> {
        self.stream.set_nonblocking(true).expect("the socket is open");
        match self.stream.peek(&mut [0]) {
            Ok(0) => Some(()),
            Err(error) if is_hang_up(&error) => Some(()),
            _ => None,
        }
    }

    fn read_or_end(&mut self, buffer: &mut [u8]) -> Option<()> {
        match self.stream.read_exact(buffer) {
            Ok(()) => Some(()),
            Err(error) if is_hang_up(&error) => None,
            Err(error) => panic!("no answer: {error}"),
        }
    }
}

fn is_hang_up(error: &io::Error) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof,
    };
    matches!(
        error.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof
    )
}

fn mac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any key length will do");
    mac.update(message);
    mac.finalize().into_bytes().to_vec()
}

/// `(ident, method, args, {})` in pickle protocol 2.
pub(crate) fn request(ident: Option<&str>, method: &str, args: &[Vec<u8>]) -> Vec<u8> {
    request_of(&ident.map_or(b"N".to_vec(), text), &text(method), &args.concat(), b"}")
}

/// The same from opcodes: ident, method, the arguments inside their tuple, and the keywords.
pub(crate) fn request_of(ident: &[u8], method: &[u8], args: &[u8], kwds: &[u8]) -> Vec<u8> {
    [b"\x80\x02(", ident, method, b"(", args, b"t", kwds, b"t."].concat()
}

/// The opcode for a short ASCII text.
pub(crate) fn text(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).expect("test texts are short");
    [&[b'U', length], text.as_bytes()].concat()
}

/// The opcode for a long text or, as Python 2 has it, for bytes.
pub(crate) fn blob(content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).expect("test bodies are short");
    [b"T", &length.to_le_bytes()[..], content].concat()
}

/// The ident in a reply of our server to `create`: the first short text of its value.
pub(crate) fn created_ident(reply: &[u8]) -> Option<String> {
    let value = position(reply, b"#RETURN")? + b"#RETURN".len();
    let text = value + reply[value..].iter().position(|&byte| byte == b'U')? + 1;
    let len = usize::from(reply[text]);
    String::from_utf8(reply[text + 1..text + 1 + len].to_vec()).ok()
}

/// Fails unless `reply` is of this kind (`#RETURN`, `#ERROR`, `#TRACEBACK`).
pub(crate) fn assert_is(reply: &[u8], kind: &str) {
    assert!(has(reply, kind), "not {kind}: {}", reply.escape_ascii());
}

/// True when `text` stands in `reply`.
pub(crate) fn has(reply: &[u8], text: &str) -> bool {
    position(reply, text.as_bytes()).is_some()
}

fn position(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
