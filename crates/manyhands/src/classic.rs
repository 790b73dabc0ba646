//! The client of CPython's protocol, for managers of CPython's own.

mod calls;
mod references;
mod reply;
mod sessions;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::de::DeserializeOwned;

use self::calls::Call;
use self::references::{References, Returning};
use self::sessions::Sessions;
use crate::Error;
use crate::answer::{Added, Answer};
use crate::server::{Server, lock};
use crate::stream::Mode;
use crate::verb::Verb;
use crate::wire::arguments::Wait;
use crate::wire::pickle::{DataError, Dialect, Payload};

/// How long a queue that is dropped may block its thread to give its reference back.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// A server of CPython's, and what this client has there.
#[derive(Debug)]
pub(crate) struct Classic {
    server: Arc<Server>,
    sessions: Sessions,
    references: Mutex<References>,
    /// Which Python reads there.
    pub(crate) dialect: Dialect,
}

impl Classic {
    pub(crate) fn new(server: Arc<Server>, mode: Mode, dialect: Dialect) -> Self {
        Self { server, sessions: Sessions::new(mode), references: Mutex::default(), dialect }
    }

    /// Asks the queue with this ident.
    pub(crate) async fn ask(&self, ident: &str, verb: Verb) -> Result<Answer, Error> {
        match verb {
            Verb::PutMany { items, wait } => self.put_many(ident, items, wait).await,
            Verb::Get { max, wait, leased: false, .. } if max > 1 => {
                self.get_many(ident, max, wait).await
            }
            verb => self.ask_once(ident, &verb).await,
        }
    }

    async fn ask_once(&self, ident: &str, verb: &Verb) -> Result<Answer, Error> {
        let call = self.call(ident, verb)?;
        let reply = self.sessions.call(&self.server, &call).await?;
        reply::answer(&self.server, verb, &reply)
    }

    /// The request, unless the server or its Python would not understand it.
    fn call(&self, ident: &str, verb: &Verb) -> Result<Call, Error> {
        let call = match verb.beyond_cpython() {
            Some(method) => Err(method),
            None => Call::queue(ident, verb).ok_or("method"),
        };
        if let Verb::Put { item, .. } = verb {
            readable(item, self.dialect)?;
        }
        let address = &self.server.address;
        call.map_err(|method| Error::Unsupported { address: Arc::clone(address), method })
    }

    /// One call for each item, until one is refused.
    async fn put_many(
        &self,
        ident: &str,
        items: Vec<Payload>,
        wait: Wait,
    ) -> Result<Answer, Error> {
        let mut added = Added::default();
        for item in items {
            let verb = Verb::Put { item, terms: None, wait, numbered: false };
            match self.ask_once(ident, &verb).await {
                Ok(_) => added.count += 1,
                Err(error @ (Error::Full | Error::ShutDown | Error::Remote { .. })) => {
                    added.refusal = Some(error);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Answer::Added(added))
    }

    /// One call for each item, as many as are there.
    async fn get_many(&self, ident: &str, max: usize, wait: Wait) -> Result<Answer, Error> {
        let get = |wait| Verb::Get { wait, max: 1, leased: false, hold: None, informed: false };
        let mut tasks = self.ask_once(ident, &get(wait)).await?.tasks()?;
        while tasks.len() < max {
            match self.ask_once(ident, &get(Wait::No)).await {
                Ok(more) => tasks.extend(more.tasks()?),
                // The next call will meet the error again.
                Err(_) => break,
            }
        }
        Ok(Answer::Tasks(tasks))
    }

    /// A reference to the queue `name`: its ident.
    pub(crate) async fn open(&self, name: &str) -> Result<String, Error> {
        let reply = self.control(&Call::named("create", name)).await?;
        let ident = reply::created(&self.server, name, &reply)?;
        lock(&self.references).add(ident.clone());
        if let Err(closed) = self.check_open() {
            lock(&self.references).defer(&ident);
            self.release(References::pop_dropped).await?;
            return Err(closed);
        }
        // What fails here is tried again by the next call; this one has what it wants.
        self.release(References::pop_dropped).await.ok();
        Ok(ident)
    }

    /// Gives a reference back that is no longer used.
    pub(crate) async fn close_queue(&self, ident: &str) -> Result<(), Error> {
        lock(&self.references).defer(ident);
        self.release(References::pop_dropped).await
    }

    /// Gives a reference back that was dropped, if the server answers within a second; or later,
    /// where that would have to be awaited.
    pub(crate) fn drop_queue(&self, ident: &str) {
        match self.sessions.mode {
            Mode::Async => lock(&self.references).defer(ident),
            Mode::Blocking => {
                if lock(&self.references).remove(ident) {
                    let limit = RELEASE_TIMEOUT.min(self.server.options.connect_timeout);
                    crate::stream::now(self.give_back(ident.to_owned(), limit)).ok();
                }
            }
        }
    }

    /// Asks the manager for something in plain data.
    pub(crate) async fn tell<T: DeserializeOwned>(&self, method: &str) -> Result<T, Error> {
        let reply = self.control(&Call::manager(method, &[])).await?;
        reply::read(&self.server, &reply)
    }

    /// See [`Sessions::forget`].
    pub(crate) fn forget(&self) {
        self.sessions.forget();
    }

    /// Gives all references back, and ends the sessions.
    pub(crate) async fn close(&self) -> Result<(), Error> {
        self.sessions.close();
        let released = self.release(References::pop).await;
        // Sessions that ended before would look like those of a client that crashed.
        self.sessions.end();
        released
    }

    /// Gives back the references that `next` names. Where it ends early, the rest stays.
    async fn release(&self, next: fn(&mut References) -> Option<String>) -> Result<(), Error> {
        loop {
            let Some(ident) = next(&mut lock(&self.references)) else { return Ok(()) };
            self.give_back(ident, self.server.options.connect_timeout).await?;
        }
    }

    async fn give_back(&self, ident: String, limit: Duration) -> Result<(), Error> {
        let returning = Returning::new(&self.references, ident);
        let outcome = self.sessions.control(&self.server, &returning.call, limit).await;
        returning.settle(outcome)
    }

    fn check_open(&self) -> Result<(), Error> {
        self.sessions.check_open(&self.server)
    }

    /// Makes a call of the manager.
    async fn control(&self, call: &Call) -> Result<crate::wire::request::Answer, Error> {
        self.check_open()?;
        self.sessions.control(&self.server, call, self.server.options.connect_timeout).await
    }
}

fn readable(item: &Payload, dialect: Dialect) -> Result<(), Error> {
    if dialect == Dialect::Python2 && item.written_in() > 2 {
        return Err(Error::Data(DataError::Shape(format!(
            "it is a pickle of protocol {}, and Python 2 reads up to 2",
            item.written_in()
        ))));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PutOptions;
    use crate::server::tests::server;
    use crate::wire::pickle::{Value, to_payload};

    fn classic() -> Classic {
        Classic::new(Arc::new(server(b"key")), Mode::Blocking, Dialect::Python3)
    }

    #[test]
    fn what_python_2_cannot_read_is_not_sent_there() {
        let bytes = |dialect| to_payload(&Value::Bytes(vec![0xff]), dialect).unwrap();
        assert!(readable(&bytes(Dialect::Python2), Dialect::Python2).is_ok());
        let error = readable(&bytes(Dialect::Python3), Dialect::Python2).unwrap_err();
        let expected =
            "the item cannot be sent: it is a pickle of protocol 3, and Python 2 reads up to 2";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_server_of_cpythons_is_asked_for_its_own_methods_alone() {
        let classic = classic();
        let item = || to_payload(&1, Dialect::Python3).unwrap();
        let (plain, keyed) = (&PutOptions::default(), &PutOptions::keyed("a"));
        let refused = |verb| match classic.call("q", &verb).unwrap_err() {
            Error::Unsupported { method, .. } => method,
            other => panic!("{other}"),
        };
        assert_eq!(refused(Verb::put_with(item(), keyed, false)), "put with options");
        assert_eq!(refused(Verb::put_with(item(), plain, true)), "put with id=True");
        assert_eq!(refused(Verb::lease(1, None)), "lease");
        assert_eq!(refused(Verb::Purge), "purge");
        let request = |verb| classic.call("q", &verb).unwrap().request;
        let put = request(Verb::put(item(), None));
        assert_eq!(request(Verb::put_with(item(), plain, false)), put);
        assert_eq!(request(Verb::take(None)), request(Verb::get(1, None)));
    }
}
