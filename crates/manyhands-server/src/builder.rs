//! What a server is made of, and the parts that come of it: ports that are taken, and an engine.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use manyhands::wire::auth::AuthKey;
use manyhands::wire::pickle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::config::{Limits, Policy};
use crate::data_dir::{self, Running};
use crate::engine::{Engine, Restored};
use crate::error::StartError;
use crate::frontend::alone::Alone;
use crate::frontend::classic::foreign::Reception;
use crate::frontend::classic::shared::Shared;
use crate::frontend::classic::verbs::Classic;
use crate::frontend::shared::{self, REDRIVES_MAX};
use crate::frontend::turns::Turns;
use crate::listener::{self, Listener};
use crate::queue::QueueOptions;

/// Shortest key that is fit for an open network, in bytes.
const STRONG_KEY_LEN: usize = 16;

/// Collects what a [`Server`](crate::Server) needs. Only the key must be given.
#[derive(Debug, Default)]
#[must_use]
pub struct Builder {
    addresses: Vec<String>,
    key: Option<AuthKey>,
    queues: Vec<(String, QueueOptions)>,
    data: Option<PathBuf>,
    limits: Limits,
    refuse_md5: bool,
    accept_shutdown: bool,
    allow_weak_key: bool,
}

impl Builder {
    /// Also listens on `address`: see [`Address`](manyhands::Address) for the forms. 127.0.0.1:5000 if none is given.
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.addresses.push(address.into());
        self
    }

    /// The secret that clients must know.
    pub fn authkey(mut self, key: impl Into<AuthKey>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Declares a queue. Once one is declared, no other names exist; without any, a name becomes
    /// an unbounded FIFO queue when it is first used.
    pub fn queue(mut self, name: impl Into<String>, options: QueueOptions) -> Self {
        self.queues.push((name.into(), options));
        self
    }

    /// Keeps the queues that have a name in this directory, which is made if need be: they are there
    /// again after a restart, and a reply says that what it answers is
    /// [kept](QueueOptions::durability). Without it, all is in memory.
    pub fn data(mut self, directory: impl Into<PathBuf>) -> Self {
        self.data = Some(directory.into());
        self
    }

    /// Replaces the bounds.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Refuses clients that can prove themselves only by HMAC-MD5: Python 3.11 and earlier.
    pub fn refuse_md5(mut self, refuse: bool) -> Self {
        self.refuse_md5 = refuse;
        self
    }

    /// Lets every client stop the server, as CPython's does.
    pub fn accept_shutdown(mut self, accept: bool) -> Self {
        self.accept_shutdown = accept;
        self
    }

    /// Allows a key under 16 bytes on an address that other machines reach.
    pub fn allow_weak_key(mut self, allow: bool) -> Self {
        self.allow_weak_key = allow;
        self
    }

    /// Everything that a server runs on. Its ports are taken, but nobody can connect yet.
    pub(crate) fn parts(mut self, reception: Option<Reception>) -> Result<Parts, StartError> {
        self.limits = self.limits.within_memory();
        let key = self.key.take().ok_or(StartError::NoKey)?;
        if self.addresses.is_empty() {
            self.addresses.push("127.0.0.1:5000".into());
        }
        let listeners = self.reserve(&key)?;
        let (shared, running, restored) = self.open(key, reception)?;
        Ok(Parts { listeners, shared, running, restored })
    }

    fn reserve(&self, key: &AuthKey) -> Result<Vec<Listener>, StartError> {
        self.addresses
            .iter()
            .map(|text| {
                let listen = |error| StartError::Listen { address: text.clone(), error };
                let address = listener::resolve(text).map_err(listen)?;
                let weak = key.strength() < STRONG_KEY_LEN;
                if weak && !address.is_local() && !self.allow_weak_key {
                    return Err(StartError::WeakKey { address, len: key.strength() });
                }
                Listener::reserve(address).map_err(listen)
            })
            .collect()
    }

    fn open(
        mut self,
        key: AuthKey,
        reception: Option<Reception>,
    ) -> Result<(Shared, Option<Running>, Option<Restored>), StartError> {
        if reception.is_some() {
            // The program decides what there is, as long as its clients may come back to it.
            self.limits.unused_timeout = Duration::ZERO;
        }
        let policy = Policy {
            accept_md5: !self.refuse_md5,
            accept_shutdown: self.accept_shutdown,
            create_on_use: self.queues.is_empty() && reception.is_none(),
        };
        let (engine, running, restored) = match &self.data {
            Some(directory) => {
                let opened =
                    data_dir::open(directory, &self.limits, policy.create_on_use, &self.queues)?;
                let (running, engine, restored) = opened;
                (engine, Some(running), Some(restored))
            }
            None => (self.in_memory(&policy)?, None, None),
        };
        let engine = Arc::new(engine);
        let classic = Classic::new(engine.clone(), &self.limits);
        let all = shared::Shared {
            idents: classic.idents.clone(),
            engine,
            key,
            limits: self.limits,
            pickle_limits: pickle::Limits::default(),
            policy,
            stop: CancellationToken::new(),
            redrives: Semaphore::new(REDRIVES_MAX),
            turns: Turns::default(),
            alone: Alone::default(),
        };
        let shared = Shared { all: Arc::new(all), classic, reception };
        Ok((shared, running, restored))
    }

    /// An engine that keeps nothing.
    fn in_memory(&self, policy: &Policy) -> Result<Engine, StartError> {
        data_dir::check_without(&self.queues)?;
        let mut boot = [0; 4];
        getrandom::fill(&mut boot).map_err(io::Error::other)?;
        let mut engine = Engine::new(&self.limits, policy.create_on_use, u32::from_ne_bytes(boot));
        engine.group(self.queues.iter().map(|(name, options)| (&**name, options)));
        for (name, options) in &self.queues {
            engine.declare(name, options.clone())?;
        }
        engine.declare_named()?;
        Ok(engine)
    }
}

/// What a server begins with.
pub(crate) struct Parts {
    pub(crate) listeners: Vec<Listener>,
    pub(crate) shared: Shared,
    pub(crate) running: Option<Running>,
    pub(crate) restored: Option<Restored>,
}
