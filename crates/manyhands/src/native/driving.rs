//! What the driver of a core does: it connects, and moves bytes.

use std::io;
use std::time::Instant;

use bytes::{Buf, BytesMut};

use super::Core;
use super::link::Link;
use crate::Error;
use crate::conversation::Conversation;
use crate::wire::native::Hello;

/// The newest pickle protocol that this client reads.
const READER: u8 = 5;
/// Least and most that is received at one time, in bytes.
const ROOM: (usize, usize) = (64 << 10, 1 << 20);

/// What a driver has to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// Connect, and say how that ended.
    Connect,
    /// Write and read what there is.
    Talk,
    /// Nothing until then, or until there is a call.
    Rest(Option<Instant>),
    /// Nothing any more.
    End,
}

impl Core {
    pub(crate) fn want(&self, now: Instant) -> Want {
        let is_over = self.is_closed && self.calls.is_all_decided();
        match &self.link {
            Link::Up(_) if is_over && self.unwritten_len() == 0 => Want::End,
            Link::Up(_) => Want::Talk,
            _ if is_over => Want::End,
            Link::Login { .. } | Link::Connecting { .. } => Want::Talk,
            Link::Down { .. } if !self.calls.is_waiting() => Want::Rest(None),
            Link::Down { retry_at: Some(at) } if *at > now => Want::Rest(Some(*at)),
            Link::Down { .. } => Want::Connect,
        }
    }

    /// When [`tick`](Self::tick) is to be called at the latest.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match &self.link {
            Link::Down { retry_at } => *retry_at,
            Link::Connecting { until } | Link::Login { until, .. } => Some(*until),
            Link::Up(_) => self.overdue_at,
        }
    }

    /// Notes that the driver begins to connect.
    pub(crate) fn connecting(&mut self, now: Instant) {
        self.link = Link::Connecting { until: now + self.server.options.connect_timeout };
    }

    /// Notes that there is a connection.
    pub(crate) fn connected(&mut self, now: Instant) {
        let Link::Connecting { until } = self.link else { return };
        match Conversation::new(&self.server) {
            Ok(mut conversation) => {
                let mut hello = BytesMut::new();
                Hello::new(READER, self.server.options.session_name.clone()).write(&mut hello);
                conversation.ask(&hello);
                self.link = Link::Login { conversation: Box::new(conversation), until };
            }
            Err(error) => self.fail(&error, now),
        }
    }

    /// Notes that there is none.
    pub(crate) fn unreachable(&mut self, error: &Error, now: Instant) {
        self.fail(error, now);
    }

    /// Whether the driver's connection is still good.
    pub(crate) fn has_link(&self) -> bool {
        matches!(self.link, Link::Login { .. } | Link::Up(_))
    }

    /// How many bytes to receive next, at most.
    pub(crate) fn room(&self) -> usize {
        match &self.link {
            Link::Login { conversation, .. } => conversation.room(),
            Link::Up(session) => {
                let missing = session.decoder.missing(&self.inbound);
                usize::try_from(missing).unwrap_or(ROOM.1).clamp(ROOM.0, ROOM.1)
            }
            _ => ROOM.0,
        }
    }

    /// How many bytes are to be written.
    pub(crate) fn unwritten_len(&self) -> usize {
        self.parts_len + self.outbound.len()
    }

    /// Where to put what is received, before [`received`](Self::received).
    pub(crate) fn inbound(&mut self) -> &mut BytesMut {
        match &mut self.link {
            Link::Login { conversation, .. } => conversation.inbound(),
            _ => &mut self.inbound,
        }
    }

    /// Reads what has come.
    pub(crate) fn received(&mut self, now: Instant) {
        if let Link::Login { .. } = self.link {
            self.log_in(now);
        }
        loop {
            let Link::Up(session) = &mut self.link else { return };
            session.heard_at = now;
            match session.decoder.next_with_header(&mut self.inbound) {
                Ok(Some((header, frame))) => self.on_frame(header, frame, now),
                Ok(None) => break,
                Err(error) => {
                    let error = self.server.unexpected(&error);
                    return self.fail(&error, now);
                }
            }
        }
        self.fill(now);
    }

    /// Notes that the server closed the connection.
    pub(crate) fn ended(&mut self, now: Instant) {
        let error = match &self.link {
            Link::Login { conversation, .. } => conversation.closed(),
            _ => {
                let how = "closed by the server";
                self.server.lost(io::Error::new(io::ErrorKind::UnexpectedEof, how))
            }
        };
        self.fail(&error, now);
    }

    /// Ends a connection on which the server said something that the protocol does not have.
    pub(crate) fn breached(&mut self, error: &Error, now: Instant) {
        if self.has_link() {
            self.fail(error, now);
        }
    }

    /// Notes that the connection broke.
    pub(crate) fn broken(&mut self, error: io::Error, now: Instant) {
        let error = self.server.lost(error);
        self.fail(&error, now);
    }

    /// What is to be written, in order.
    pub(crate) fn unwritten(&mut self, now: Instant) -> impl Iterator<Item = &[u8]> {
        self.tell_starts(now);
        if self.parts.is_empty() && !self.outbound.is_empty() {
            self.parts_len = self.outbound.len();
            self.parts.extend(self.outbound.split_to(self.parts_len).into_parts());
        }
        self.parts.iter().map(|part| &part[..])
    }

    /// Notes that so many bytes were written.
    pub(crate) fn wrote(&mut self, len: usize, now: Instant) {
        self.written += len as u64;
        self.parts_len -= len;
        let mut left = len;
        while let Some(part) = self.parts.front_mut() {
            if left < part.len() {
                part.advance(left);
                break;
            }
            left -= part.len();
            self.parts.pop_front();
        }
        if matches!(self.link, Link::Login { .. }) && self.unwritten_len() == 0 {
            self.log_in(now);
        }
    }

    /// Looks what is overdue.
    pub(crate) fn tick(&mut self, now: Instant) {
        match &self.link {
            Link::Connecting { until } | Link::Login { until, .. } if *until <= now => {
                let error = self.server.timed_out(self.server.options.connect_timeout);
                self.fail(&error, now);
            }
            Link::Up(_) if self.overdue_at.is_some_and(|at| at <= now) => self.end_overdue(now),
            _ => {}
        }
    }

    /// Whether nothing but the end of the connection may come, as no request was written that has no
    /// reply.
    pub(crate) fn is_idle(&self) -> bool {
        let Link::Up(session) = &self.link else { return false };
        self.calls.is_idle() || session.rest_at == self.written
    }
}
