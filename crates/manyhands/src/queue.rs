//! The queues of both clients, written once: [`client`](crate::client) waits with `.await`,
//! [`blocking`](crate::blocking) blocks its thread.
//!
//! Each gives a `Client` with `call`, `pause` and `let_go`, and a `Reference` with `ident`,
//! `is_manyhands` and `renew`.

/// Writes `Queue` and `Lease` for one client.
macro_rules! queues {
    (async: [$($async:tt)*], await: [$($await:tt)*]) => {
        /// Why a task comes back whose lease was dropped.
        const DROPPED: &str = "its worker dropped it";

        /// A queue on a server, holding items of type `T`. Clones are the same queue.
        ///
        /// The verbs are those of Python's `queue.Queue`, and so is their meaning; those beyond need a
        /// manyhands server.
        pub struct Queue<T> {
            reference: Arc<Reference>,
            item: PhantomData<fn(T) -> T>,
        }

        impl<T> Clone for Queue<T> {
            fn clone(&self) -> Self {
                Self { reference: Arc::clone(&self.reference), item: PhantomData }
            }
        }

        impl<T> fmt::Debug for Queue<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct("Queue")
                .field("name", &self.reference.name)
                .field("address", &self.reference.client.address())
                .finish()
            }
        }

        impl<T> Queue<T> {
            /// The name under which it is registered.
            #[must_use]
            pub fn name(&self) -> &str {
                &self.reference.name
            }

            /// About how many items there are.
            ///
            /// # Errors
            ///
            /// That the server was lost.
            pub $($async)* fn qsize(&self) -> Result<u64, Error> {
                self.read(Repeat::Safe, |ident| Call::prompt(ident, "qsize")) $($await)*
            }

            /// Whether there was no item just now.
            ///
            /// # Errors
            ///
            /// That the server was lost.
            pub $($async)* fn is_empty(&self) -> Result<bool, Error> {
                self.read(Repeat::Safe, |ident| Call::prompt(ident, "empty")) $($await)*
            }

            /// Whether there was no free slot just now.
            ///
            /// # Errors
            ///
            /// That the server was lost.
            pub $($async)* fn is_full(&self) -> Result<bool, Error> {
                self.read(Repeat::Safe, |ident| Call::prompt(ident, "full")) $($await)*
            }

            /// Says that an item which was taken is done; one call for each `get`, and none for a lease,
            /// which says so by its `ack`.
            ///
            /// # Errors
            ///
            /// [`Error::Remote`] of class `ValueError` when there were more calls than items.
            pub $($async)* fn task_done(&self) -> Result<(), Error> {
                self.read(Repeat::Doubtful, |ident| Call::prompt(ident, "task_done")) $($await)*
            }

            /// Waits until every item that was put is done.
            ///
            /// # Errors
            ///
            /// That the server was lost.
            pub $($async)* fn join(&self) -> Result<(), Error> {
                self.read(Repeat::Safe, Call::join) $($await)*
            }

            /// Ends the queue: `put` fails from now on, and `get` as soon as the queue is empty, which
            /// `immediate` makes it at once. Python servers know this from 3.13 on.
            ///
            /// # Errors
            ///
            /// [`Error::Remote`] of class `KeyError` or `AttributeError` from an older Python.
            pub $($async)* fn shutdown(&self, immediate: bool) -> Result<(), Error> {
                self.read(Repeat::Safe, |ident| Call::shutdown(ident, immediate)) $($await)*
            }

            /// Puts a payload as it is, waiting for a free slot for ever or for `timeout`.
            ///
            /// # Errors
            ///
            /// [`Error::Full`], [`Error::ShutDown`]; [`Error::Data`] if the server's Python is too old to
            /// read it.
            pub $($async)* fn put_payload(
                &self,
                item: &Payload,
                timeout: Option<Duration>,
            ) -> Result<(), Error> {
                readable(item, self.dialect())?;
                self.read(Repeat::Doubtful, |ident| Call::put(ident, item, timeout)) $($await)*
            }

            /// Takes the next item as it is, waiting for it for ever or for `timeout`.
            ///
            /// # Errors
            ///
            /// [`Error::Empty`], [`Error::ShutDown`].
            pub $($async)* fn get_payload(
                &self,
                timeout: Option<Duration>,
            ) -> Result<Payload, Error> {
                self.take(|ident| Call::get(ident, timeout)) $($await)*
            }

            /// Adds payloads as they are, in as few requests as their size allows, waiting for free slots for
            /// ever or for `timeout` each. Says how many were added: those from the first on.
            ///
            /// A server of CPython's gets one call for each.
            ///
            /// # Errors
            ///
            /// What the first one of all fails with, as by `put`. [`Error::InDoubt`] at any time.
            pub $($async)* fn put_many_payloads(
                &self,
                items: &[Payload],
                timeout: Option<Duration>,
            ) -> Result<usize, Error> {
                let mut added = 0;
                while let Some(rest) = items.get(added..).filter(|rest| !rest.is_empty()) {
                    let count = if self.has_extras() {
                        let piece = piece(rest);
                        let call = |ident: &str| Call::put_many(ident, piece, timeout);
                        let count = self.read::<usize>(Repeat::Doubtful, call) $($await)*;
                        count.map(|count| (count, count < piece.len()))
                    } else {
                        self.put_first(rest, timeout) $($await)* .map(|()| (1, false))
                    };
                    match count {
                        Ok((count, is_end)) => {
                            added += count;
                            if is_end {
                                break;
                            }
                        }
                        Err(Error::Full | Error::ShutDown | Error::Remote { .. }) if added > 0 => {
                            break;
                        }
                        Err(error) => return Err(error),
                    }
                }
                Ok(added)
            }

            $($async)* fn put_first(
                &self,
                items: &[Payload],
                timeout: Option<Duration>,
            ) -> Result<(), Error> {
                match items.first() {
                    Some(item) => self.put_payload(item, timeout) $($await)*,
                    None => Ok(()),
                }
            }

            /// Takes the next item, waiting for it for ever or for `timeout`, and with it what else is
            /// there, up to `max` items and some 8 MiB. They come as they are.
            ///
            /// A server of CPython's gets one call for each.
            ///
            /// # Errors
            ///
            /// [`Error::Empty`], [`Error::ShutDown`].
            pub $($async)* fn get_many_payloads(
                &self,
                max: usize,
                timeout: Option<Duration>,
            ) -> Result<Vec<Payload>, Error> {
                if self.has_extras() {
                    let call = |ident: &str| Call::many(ident, "get_many", max, timeout);
                    let (answer, _) = self.ask(Repeat::Safe, call) $($await)* ?;
                    return self.server().payloads(&answer);
                }
                let mut items = vec![self.get_payload(timeout) $($await)* ?];
                while items.len() < max {
                    match self.take(|ident| Call::prompt(ident, "get_nowait")) $($await)* {
                        Ok(item) => items.push(item),
                        // The next call will meet the error again.
                        Err(_) => break,
                    }
                }
                Ok(items)
            }

            /// Looks at tasks and takes none: what each holds, who has it, and why it failed. Ready
            /// ones come in the order in which they would be taken, others in that of their puts; a
            /// server shows at most 16,384, and 8 MiB or a 64th of its memory, at a time.
            ///
            /// # Errors
            ///
            /// [`Error::Unsupported`], or that the server was lost.
            pub $($async)* fn peek(&self, peek: Peek) -> Result<Vec<Peeked>, Error> {
                self.supports("peek")?;
                let (answer, _) = self.ask(Repeat::Safe, |ident| Call::peek(ident, peek)) $($await)* ?;
                self.server().peeked(&answer)
            }

            /// Moves up to `max` tasks of this dead-letter queue back to the queues that they came from,
            /// as new ones. Says how many; a server moves at most 16,384, and some 8 MiB, at a
            /// time.
            ///
            /// # Errors
            ///
            /// [`Error::Unsupported`], or that the server was lost.
            pub $($async)* fn redrive(&self, max: usize) -> Result<u64, Error> {
                self.supports("redrive")?;
                self.read(Repeat::Doubtful, |ident| Call::redrive(ident, max)) $($await)*
            }

            /// Drops all that is ready or delayed; says how much. What somebody has in hand stays.
            ///
            /// # Errors
            ///
            /// [`Error::Unsupported`], or that the server was lost.
            pub $($async)* fn purge(&self) -> Result<u64, Error> {
                self.supports("purge")?;
                self.read(Repeat::Doubtful, |ident| Call::prompt(ident, "purge")) $($await)*
            }

            fn supports(&self, method: &'static str) -> Result<(), Error> {
                if self.has_extras() {
                    return Ok(());
                }
                let address = Arc::clone(&self.server().address);
                Err(Error::Unsupported { address, method })
            }

            /// Whether the server has more than CPython's methods, and this client has said that it
            /// knows them.
            fn has_extras(&self) -> bool {
                let session_name = &self.server().options.session_name;
                self.reference.is_manyhands() && announced(session_name) > 0
            }

            fn dialect(&self) -> Dialect {
                self.reference.client.shared.dialect
            }

            fn server(&self) -> &Server {
                &self.reference.client.shared.server
            }

            $($async)* fn take(&self, call: impl Fn(&str) -> Call) -> Result<Payload, Error> {
                let (answer, _) = self.ask(Repeat::Safe, call) $($await)* ?;
                self.server().result(&answer).cloned()
            }

            $($async)* fn read<R: DeserializeOwned>(
                &self,
                repeat: Repeat,
                call: impl Fn(&str) -> Call,
            ) -> Result<R, Error> {
                let (answer, _) = self.ask(repeat, call) $($await)* ?;
                self.server().read(&answer)
            }

            /// Makes a call, again if need be and if that does no harm. Tells whether it was.
            $($async)* fn ask(
                &self,
                repeat: Repeat,
                call: impl Fn(&str) -> Call,
            ) -> Result<(Answer, bool), Error> {
                let client = &self.reference.client;
                let mut retry = Retry::new(self.server(), repeat, self.reference.is_manyhands());
                loop {
                    let ident = self.reference.ident();
                    let failure = match client.call(call(&ident)) $($await)* {
                        Ok(answer) if !retry.is_renewable(self.server(), &answer) => {
                            return Ok((answer, retry.is_repeated));
                        }
                        Ok(_) => match self.reference.renew(&ident) $($await)* {
                            Ok(()) => continue,
                            Err(error) => Failure::unsent(error),
                        },
                        Err(failure) => failure,
                    };
                    let pause = retry.judge(failure)?;
                    client.pause(pause) $($await)* ?;
                }
            }
        }

        impl<T: Serialize> Queue<T> {
            /// Puts an item, waiting for a free slot for ever.
            ///
            /// # Errors
            ///
            /// [`Error::ShutDown`], [`Error::Data`].
            pub $($async)* fn put(&self, item: &T) -> Result<(), Error> {
                let item = pickled(item, self.dialect())?;
                self.read(Repeat::Doubtful, |ident| Call::put(ident, &item, None)) $($await)*
            }

            /// Puts an item, waiting for a free slot for at most `timeout`.
            ///
            /// # Errors
            ///
            /// [`Error::Full`], [`Error::ShutDown`], [`Error::Data`].
            pub $($async)* fn put_timeout(&self, item: &T, timeout: Duration) -> Result<(), Error> {
                let item = pickled(item, self.dialect())?;
                self.read(Repeat::Doubtful, |ident| Call::put(ident, &item, Some(timeout))) $($await)*
            }

            /// Puts an item if there is a free slot.
            ///
            /// # Errors
            ///
            /// [`Error::Full`], [`Error::ShutDown`], [`Error::Data`].
            pub $($async)* fn try_put(&self, item: &T) -> Result<(), Error> {
                let item = pickled(item, self.dialect())?;
                self.read(Repeat::Doubtful, |ident| Call::try_put(ident, &item)) $($await)*
            }

            /// Puts an item with options. False if its key was used a short while ago: it was put before.
            ///
            /// # Errors
            ///
            /// [`Error::Full`], [`Error::ShutDown`], [`Error::Data`]; [`Error::Unsupported`] if the server
            /// is CPython's own, unless only a time-out is asked for.
            pub $($async)* fn put_with(&self, item: &T, options: &PutOptions) -> Result<bool, Error> {
                let item = pickled(item, self.dialect())?;
                let plain = PutOptions { timeout: options.timeout, ..PutOptions::default() };
                if *options == plain {
                    return self.put_payload(&item, options.timeout) $($await)* .map(|()| true);
                }
                self.supports("put with options")?;
                let has_key = options.key.is_some();
                let repeat = if has_key { Repeat::Safe } else { Repeat::Doubtful };
                let call = |ident: &str| Call::put_with(ident, &item, options, false);
                let (answer, is_repeated) = self.ask(repeat, call) $($await)* ?;
                let is_new: Option<bool> = self.server().read(&answer)?;
                // The first of two attempts may have been the one that added it.
                Ok(is_new.unwrap_or(true) || is_repeated)
            }

            /// Puts an item with options, and returns the number of its task, which
            /// [leases](Lease::task) and what is known of [results](Taken) carry too. `None` if its key
            /// was used a short while ago: it was put before, perhaps by this very call, if that
            /// had to be made twice.
            ///
            /// # Errors
            ///
            /// Those of [`put_with`](Self::put_with).
            pub $($async)* fn put_task(
                &self,
                item: &T,
                options: &PutOptions,
            ) -> Result<Option<u64>, Error> {
                let item = pickled(item, self.dialect())?;
                self.supports("put with id=True")?;
                let has_key = options.key.is_some();
                let repeat = if has_key { Repeat::Safe } else { Repeat::Doubtful };
                self.read(repeat, |ident| Call::put_with(ident, &item, options, true)) $($await)*
            }

            /// Puts items in one request, or a few, waiting for free slots for ever. Says how many
            /// were added: those from the first on.
            ///
            /// # Errors
            ///
            /// What the first one fails with, as by [`put`](Self::put); [`Error::Data`].
            pub $($async)* fn put_many<'a>(
                &self,
                items: impl IntoIterator<Item = &'a T>,
            ) -> Result<usize, Error>
            where
            T: 'a,
            {
                let items = pickled_all(items, self.dialect())?;
                self.put_many_payloads(&items, None) $($await)*
            }

            /// The same, waiting for a free slot for at most `timeout`.
            ///
            /// # Errors
            ///
            /// As said; [`Error::Full`] if not even the first one found a slot.
            pub $($async)* fn put_many_timeout<'a>(
                &self,
                items: impl IntoIterator<Item = &'a T>,
                timeout: Duration,
            ) -> Result<usize, Error>
            where
            T: 'a,
            {
                let items = pickled_all(items, self.dialect())?;
                self.put_many_payloads(&items, Some(timeout)) $($await)*
            }
        }

        impl<T: DeserializeOwned> Queue<T> {
            /// Takes the next item, waiting for it for ever.
            ///
            /// # Errors
            ///
            /// [`Error::ShutDown`], [`Error::Item`].
            pub $($async)* fn get(&self) -> Result<T, Error> {
                self.item(|ident| Call::get(ident, None)) $($await)*
            }

            /// Takes the next item, waiting for it for at most `timeout`.
            ///
            /// # Errors
            ///
            /// [`Error::Empty`], [`Error::ShutDown`], [`Error::Item`].
            pub $($async)* fn get_timeout(&self, timeout: Duration) -> Result<T, Error> {
                self.item(|ident| Call::get(ident, Some(timeout))) $($await)*
            }

            /// Takes the next item if there is one.
            ///
            /// # Errors
            ///
            /// [`Error::Empty`], [`Error::ShutDown`], [`Error::Item`].
            pub $($async)* fn try_get(&self) -> Result<T, Error> {
                self.item(|ident| Call::prompt(ident, "get_nowait")) $($await)*
            }

            $($async)* fn item(&self, call: impl Fn(&str) -> Call) -> Result<T, Error> {
                let payload = self.take(call) $($await)* ?;
                self.server().item(self.name(), payload)
            }

            /// Takes the next item, waiting for it for ever or for `timeout`, and with it what else is
            /// there, up to `max`.
            ///
            /// # Errors
            ///
            /// [`Error::Empty`], [`Error::ShutDown`]; [`Error::Item`] if any of them is no `T`, and
            /// then all have been taken:
            /// [`get_many_payloads`](Self::get_many_payloads) is for queues of many types.
            pub $($async)* fn get_many(
                &self,
                max: usize,
                timeout: Option<Duration>,
            ) -> Result<Vec<T>, Error> {
                let payloads = self.get_many_payloads(max, timeout) $($await)* ?;
                payloads.into_iter().map(|payload| self.server().item(self.name(), payload)).collect()
            }

            /// Takes the next item, waiting for it for ever or for `timeout`, with what is known of
            /// it. From a server of CPython's nothing is known.
            ///
            /// # Errors
            ///
            /// [`Error::Empty`], [`Error::ShutDown`], [`Error::Item`].
            pub $($async)* fn take_with_info(
                &self,
                timeout: Option<Duration>,
            ) -> Result<Taken<T>, Error> {
                let Taken { item, info } = self.take_payload_with_info(timeout) $($await)* ?;
                Ok(Taken { item: self.server().item(self.name(), item)?, info })
            }

            /// The same with the item as it is.
            ///
            /// # Errors
            ///
            /// [`Error::Empty`], [`Error::ShutDown`].
            pub $($async)* fn take_payload_with_info(
                &self,
                timeout: Option<Duration>,
            ) -> Result<Taken<Payload>, Error> {
                if !self.has_extras() {
                    let item = self.get_payload(timeout) $($await)* ?;
                    return Ok(Taken { item, info: None });
                }
                let call = |ident: &str| Call::many(ident, "take_many", 1, timeout);
                let (answer, _) = self.ask(Repeat::Safe, call) $($await)* ?;
                self.server().taken(&answer)?.into_iter().next().ok_or(Error::Empty)
            }

            /// Leases the next task, waiting for one for ever or for `timeout`.
            ///
            /// # Errors
            ///
            /// [`Error::Empty`], [`Error::ShutDown`]; [`Error::Item`], and the task is a dead letter, so
            /// that the program can go on with the next; [`Error::Unsupported`] if the server is CPython's own.
            pub $($async)* fn lease(&self, timeout: Option<Duration>) -> Result<Lease<T>, Error> {
                let leases = self.lease_many(1, timeout) $($await)* ?;
                leases.into_iter().next().ok_or(Error::Empty)
            }

            /// Leases the next task, waiting for it for ever or for `timeout`, and with it what else is
            /// there, up to `max`. Those that are no `T` are dead letters at once, and left out.
            ///
            /// # Errors
            ///
            /// Those of [`lease`](Self::lease).
            pub $($async)* fn lease_many(
                &self,
                max: usize,
                timeout: Option<Duration>,
            ) -> Result<Vec<Lease<T>>, Error> {
                self.supports("lease")?;
                let call = |ident: &str| Call::many(ident, "lease_many", max, timeout);
                let (answer, _) = self.ask(Repeat::Safe, call) $($await)* ?;
                let (mut leases, mut failure) = (Vec::new(), None);
                for Leased { token, task, attempt, payload } in self.server().leases(&answer)? {
                    match self.server().item(self.name(), payload) {
                        Ok(item) => {
                            let queue = self.clone();
                            leases.push(Lease { queue, item, token, task, attempt, is_over: false });
                        }
                        Err(error) => {
                            let reason = error.to_string();
                            let call = |ident: &str| Call::give_up(ident, &token, &reason);
                            self.give_back(call) $($await)* ?;
                            failure = Some(error);
                        }
                    }
                }
                match failure {
                    Some(error) if leases.is_empty() => Err(error),
                    _ => Ok(leases),
                }
            }
        }

        /// A task that this program has taken, and has to settle: it derefs to the item.
        ///
        /// It stays out until it is settled, until this client's sessions have ended, or for as long as the queue's
        /// `max_run`. Dropped without having been settled, it goes back as failed: at once, or after the
        /// queue's pause if its thread panics.
        pub struct Lease<T> {
            queue: Queue<T>,
            item: T,
            token: String,
            task: u64,
            attempt: u32,
            is_over: bool,
        }

        impl<T: fmt::Debug> fmt::Debug for Lease<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct("Lease")
                .field("item", &self.item)
                .field("task", &self.task)
                .field("attempt", &self.attempt)
                .finish_non_exhaustive()
            }
        }

        impl<T> Deref for Lease<T> {
            type Target = T;

            fn deref(&self) -> &T {
                &self.item
            }
        }

        impl<T> Lease<T> {
            /// Which attempt at the task this is, from 1.
            #[must_use]
            pub fn attempt(&self) -> u32 {
                self.attempt
            }

            /// The task's position among the puts of its queue, from 0.
            #[must_use]
            pub fn task(&self) -> u64 {
                self.task
            }

            /// The task is done, and has no result.
            ///
            /// # Errors
            ///
            /// [`Error::Remote`] if the queue declares a queue of results: that is a call of
            /// [`ack_with`](Self::ack_with). [`Error::Stale`] if somebody else has taken it since; [`Error::InDoubt`] if that is so when
            /// the call is made again after a lost connection; that the server was lost.
            pub $($async)* fn ack(mut self) -> Result<(), Error> {
                self.is_over = true;
                let acked = self.settle(|ident, token| Call::ack(ident, token)) $($await)*;
                // A call that was wrong has settled nothing: the task goes back.
                self.is_over = !matches!(acked, Err(Error::Remote { .. }));
                acked
            }

            /// The task is done, and this is its result, for the queue of results that the task's queue
            /// declares; both or neither. Waits for a free slot there.
            ///
            /// # Errors
            ///
            /// [`Error::Stale`] if somebody else has taken it since: nothing was put then. [`Error::Data`].
            /// [`Error::InDoubt`] if it is over when the call is made again after a lost connection: the
            /// result was put by the first, or never will be.
            pub $($async)* fn ack_with<R: Serialize>(mut self, result: &R) -> Result<(), Error> {
                let result = pickled(result, self.queue.dialect())?;
                self.is_over = true;
                self.settle(|ident, token| Call::ack_with(ident, token, &result)) $($await)*
            }

            /// The task failed, and why. It comes back after `delay`, or after the queue's own pause.
            ///
            /// # Errors
            ///
            /// [`Error::Stale`] if somebody else has taken it since; that the server was lost.
            pub $($async)* fn nack(mut self, delay: Option<Duration>, reason: &str) -> Result<(), Error> {
                self.is_over = true;
                let token = std::mem::take(&mut self.token);
                let call = |ident: &str| Call::nack(ident, &token, delay, reason);
                self.queue.give_back(call) $($await)*
            }

            /// The task failed, and no further attempt can do it: it is a dead letter at once, with
            /// this reason.
            ///
            /// # Errors
            ///
            /// Those of [`nack`](Self::nack).
            pub $($async)* fn give_up(mut self, reason: &str) -> Result<(), Error> {
                self.is_over = true;
                let token = std::mem::take(&mut self.token);
                self.queue.give_back(|ident| Call::give_up(ident, &token, reason)) $($await)*
            }

            /// The lease lasts for `hold` from now, or as long as the queue's `max_run` allows.
            ///
            /// # Errors
            ///
            /// [`Error::Stale`] if it is over; that the server was lost.
            pub $($async)* fn extend(&self, hold: Duration) -> Result<(), Error> {
                let call = |ident: &str| Call::extend(ident, &self.token, hold);
                let (answer, _) = self.queue.ask(Repeat::Safe, call) $($await)* ?;
                // Twice comes to the same as once, so that the last answer is the one that holds.
                self.queue.server().settled(&answer, false)
            }

            $($async)* fn settle(&self, call: impl Fn(&str, &str) -> Call) -> Result<(), Error> {
                let call = |ident: &str| call(ident, &self.token);
                let (answer, is_repeated) = self.queue.ask(Repeat::Safe, call) $($await)* ?;
                self.queue.server().settled(&answer, is_repeated)
            }
        }

        impl<T> Queue<T> {
            $($async)* fn give_back(
                &self,
                call: impl Fn(&str) -> Call,
            ) -> Result<(), Error> {
                let (answer, is_repeated) = self.ask(Repeat::Safe, call) $($await)* ?;
                match self.server().settled(&answer, is_repeated) {
                    // The first of two attempts has done it, or the task was back before.
                    Err(Error::InDoubt { .. }) => Ok(()),
                    settled => settled,
                }
            }
        }

        impl<T> Drop for Lease<T> {
            fn drop(&mut self) {
                if !self.is_over {
                    let reference = &self.queue.reference;
                    // What makes one worker panic makes the next one panic too: not at once.
                    let delay = (!std::thread::panicking()).then_some(Duration::ZERO);
                    let call = Call::nack(&reference.ident(), &self.token, delay, DROPPED);
                    reference.client.let_go(call);
                }
            }
        }
    };
}
