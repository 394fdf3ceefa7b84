//! The client: what callers call, and the threads of its connections.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::job::{Answer, Job, Outcome, Reply};
use crate::link::{Link, Links, Settings, Step};
use crate::route::Route;
use crate::stream::{Dialler, Stream};
use crate::tables::{Code, Kind, Operation, MOST_BYTES, NONCE_BYTES};
use crate::wire::{self, Key, Signature, MESSAGE_AT};

/// How much longer than its deadline a request waits for the gateway's word about it, which says more than ours.
const GRACE: Duration = Duration::from_millis(250);
const READ_BYTES: usize = 1 << 14;
const MOST_CONNECTIONS: usize = 64;

/// Whether a key made a signature of a message: `(key, message, signature)`. std has no Ed25519.
pub type Verifier = Arc<dyn Fn(&Key, &[u8], &[u8]) -> bool + Send + Sync>;

/// How a client connects.
#[derive(Clone)]
pub struct Options {
    /// Over how many connections requests are spread, 1 to 64.
    pub connections: usize,
    /// How long a gateway may take for its first word.
    pub connect_timeout: Duration,
    /// The longest pause between attempts to connect.
    pub max_backoff: Duration,
    /// A connection without a sign of life is tested after so long, and given up after twice that.
    pub ping: Duration,
    /// How many requests may wait for credits or for a connection; one more is `Code::QueueFull`.
    pub max_waiting: usize,
    /// What the gateway calls this process.
    pub program: String,
    /// Connects to an address; None: Unix sockets only.
    pub dial: Option<Dialler>,
    /// Verifies each signature before it is handed out.
    pub verifier: Option<Verifier>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connections: 1,
            connect_timeout: Duration::from_secs(5),
            max_backoff: Duration::from_secs(2),
            ping: Duration::from_secs(5),
            max_waiting: 16_384,
            program: concat!("hsmcore-client/", env!("CARGO_PKG_VERSION"), " rust").into(),
            dial: None,
            verifier: None,
        }
    }
}

/// How a client stands.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct State {
    /// The address that is used now.
    pub address: String,
    /// Connections that take requests.
    pub connections: usize,
    /// What the gateway calls this client.
    pub client: String,
    /// Requests that are not answered.
    pub open: usize,
    /// Why the last connection that broke, or was not made, did.
    pub trouble: Option<Error>,
}

struct Shared {
    links: Mutex<Links>,
    /// A gateway has answered, or none will, or all requests are settled.
    changed: Condvar,
    dial: Option<Dialler>,
    verifier: Option<Verifier>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Do something under the lock, and wake who is concerned.
    fn with<T>(&self, act: impl FnOnce(&mut Links) -> T) -> T {
        let mut links = self.lock();
        let found = act(&mut links);
        let (told, news) = (std::mem::take(&mut links.told), std::mem::take(&mut links.news));
        for link in links.links.iter_mut().filter(|link| link.sleeps && link.has_work()) {
            link.sleeps = false;
            link.work.notify_one();
        }
        drop(links);
        told.into_iter().for_each(|(reply, outcome)| reply.tell(outcome));
        if news {
            self.changed.notify_all();
        }
        found
    }

    /// The thread of a connection: makes it again and again, and writes.
    fn serve(self: &Arc<Self>, at: usize) {
        let mut back = None;
        loop {
            match self.with(|links| links.step(at, back.take())) {
                Step::End => return,
                Step::Write(data, mut writer, attempt) => match writer.write_all(&data).and_then(|()| writer.flush()) {
                    Ok(()) => back = Some((data, writer, attempt)),
                    Err(error) => self.with(|links| links.gone(at, attempt, Error::lost(error.to_string()))),
                },
                Step::Dial(address, attempt) => {
                    let shared = self.clone();
                    let read = move || {
                        let error = shared.read(at, &address, attempt).err();
                        let error = error.map_or("the gateway closed the connection".into(), |error| error.to_string());
                        shared.with(|links| links.gone(at, attempt, Error::lost(error)));
                    };
                    if let Err(error) = thread::Builder::new().name("hsmcore-read".into()).spawn(read) {
                        self.with(|links| links.gone(at, attempt, Error::lost(error.to_string())));
                    }
                }
                Step::SleepUntil(when) => {
                    let mut links = self.lock();
                    let link = &mut links.links[at];
                    if !link.has_work() {
                        link.sleeps = true;
                        let (work, left) = (link.work.clone(), when.saturating_duration_since(Instant::now()));
                        links = work.wait_timeout(links, left).unwrap_or_else(PoisonError::into_inner).0;
                        links.links[at].sleeps = false;
                        drop(links);
                        // More is written at once if callers that are about to submit come first.
                        thread::yield_now();
                    }
                }
            }
        }
    }

    /// The thread of one attempt: connects, then reads until the end.
    fn read(&self, at: usize, address: &str, attempt: u64) -> io::Result<()> {
        let Stream { mut reader, writer, hang_up } = match &self.dial {
            Some(dial) => dial(address)?,
            None => Stream::unix(UnixStream::connect(address.trim_start_matches("unix:"))?)?,
        };
        if !self.with(|links| links.connected(at, attempt, writer, hang_up)) {
            return Ok(());
        }
        let (mut buffer, mut filled) = (vec![0; READ_BYTES], 0);
        loop {
            match reader.read(&mut buffer[filled..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(0) => return Ok(()),
                found => filled += found?,
            }
            let Some((read, wanted)) = self.with(|links| links.feed(at, attempt, &buffer[..filled])) else {
                return Ok(());
            };
            buffer.copy_within(read..filled, 0);
            filled -= read;
            if buffer.len() < wanted {
                buffer.resize(wanted, 0);
            }
        }
    }
}

/// Has payloads signed by a gateway. Any number of threads may use it. Dropped, it fails what is open.
pub struct Client(Arc<Shared>);

impl Client {
    /// Connect to the first of these gateways that answers: "unix:/path", or what `Options::dial` understands. Fails if
    /// none does in time, or this client is refused.
    pub fn connect<A: AsRef<str>>(addresses: &[A], options: Options) -> Result<Self, Error> {
        let mut listed: Vec<String> = Vec::new();
        for one in addresses.iter().map(AsRef::as_ref) {
            if !one.starts_with("unix:") && options.dial.is_none() {
                return Err(Error::bad_argument(format!(
                    "{one}: give \"unix:/path\", or Options::dial to connect there."
                )));
            }
            if !listed.iter().any(|other| other == one) {
                listed.push(one.into());
            }
        }
        if listed.is_empty() || !(1..=MOST_CONNECTIONS).contains(&options.connections) || options.ping.is_zero() {
            return Err(Error::bad_argument("Give an address, 1 to 64 connections and a ping of more than nothing."));
        }
        let links = (0..options.connections).map(|_| random().map(Link::new)).collect::<io::Result<Vec<_>>>();
        let links = links.map_err(|error| Error::new(Code::System, format!("/dev/urandom: {error}")))?;
        let works: Vec<usize> = (0..links.len()).collect();
        let Options { connect_timeout, max_backoff, ping, max_waiting, program, dial, verifier, .. } = options;
        let settings = Settings { connect_timeout, ping, max_waiting, program };
        let links = Links::new(Route::new(listed, max_backoff), links, settings);
        let shared = Arc::new(Shared { links: Mutex::new(links), changed: Condvar::new(), dial, verifier });
        let client = Self(shared.clone()); // dropped, it ends the threads
        for at in works {
            let shared = shared.clone();
            let name = "hsmcore-write".into();
            let made = thread::Builder::new().name(name).spawn(move || shared.serve(at));
            made.map_err(|error| Error::new(Code::System, error.to_string()))?;
        }
        let waits = |links: &mut Links| links.opened.is_none();
        let links = shared.changed.wait_timeout_while(shared.lock(), connect_timeout, waits);
        let links = links.unwrap_or_else(PoisonError::into_inner).0;
        let silent = || Error::lost("No gateway answered in time.");
        let opened = links.opened.clone().unwrap_or_else(|| Err(links.trouble.clone().unwrap_or_else(silent)));
        drop(links);
        opened.map(|()| client)
    }

    /// Have a payload signed by the key manager `key` ("default"), and wait for it. `kind`: what it is, if a policy asks;
    /// `position`: the place in its chain that it must say. A deadline counts here and at the gateway.
    pub fn sign(
        &self,
        key: &str,
        payload: &[u8],
        kind: Kind,
        position: Option<u64>,
        deadline: Instant,
    ) -> Result<Signature, Error> {
        self.submit(key, payload, kind, position, deadline)?.wait()
    }

    /// As `sign`, but do not wait.
    pub fn submit(
        &self,
        key: &str,
        payload: &[u8],
        kind: Kind,
        position: Option<u64>,
        deadline: Instant,
    ) -> Result<Pending, Error> {
        self.submit_by(None, key, payload, kind, position, deadline)
    }

    /// As `submit`; `by`: sign with this version of the key, or not at all.
    pub fn submit_by(
        &self,
        by: Option<&Key>,
        key: &str,
        payload: &[u8],
        kind: Kind,
        position: Option<u64>,
        deadline: Instant,
    ) -> Result<Pending, Error> {
        if payload.is_empty() {
            return Err(Error::bad_argument("The payload has no bytes."));
        }
        if payload.len() > MOST_BYTES - MESSAGE_AT {
            let text = format!("The payload has {} bytes, and no frame has room for it.", payload.len());
            return Err(Error::new(Code::MessageTooLarge, text));
        }
        self.ask(wire::sign(payload, kind, position), key, by, deadline)
    }

    /// Have something done with a key, by its id ("" where there is none; of `Operation::Unfinished`, the domain). Returns
    /// what the gateway says about it.
    pub fn manage(&self, key: &str, operation: Operation, key_id: &str, deadline: Instant) -> Result<String, Error> {
        match self.ask(wire::manage(operation, key_id)?, key, None, deadline)?.outcome()? {
            Answer::Done(text) => Ok(text),
            Answer::Signed(..) => Err(strange()),
        }
    }

    fn ask(&self, frame: Vec<u8>, key: &str, by: Option<&Key>, deadline: Instant) -> Result<Pending, Error> {
        let job = Job::new(frame, key, by.map(|by| by.public_key.clone()), deadline);
        let (shared, reply) = (self.0.clone(), job.reply.clone());
        shared.with(|links| links.submit(job))?;
        Ok(Pending { shared, reply, deadline })
    }

    /// The versions of a key, as the gateway told last. A lock is taken, nothing is sent.
    #[must_use]
    pub fn keys(&self, key: &str) -> Vec<Arc<Key>> {
        self.0.lock().slots.get(key).map_or_else(Vec::new, |slot| slot.keys.clone())
    }

    /// The version that signs now, if one is known to.
    #[must_use]
    pub fn current(&self, key: &str) -> Option<Arc<Key>> {
        self.0.lock().slots.get(key)?.current().cloned()
    }

    /// Whether a version of the key made this signature, by `Options::verifier` and the keys that the gateway told. Nothing
    /// is sent.
    pub fn verify(&self, key: &str, message: &[u8], signature: &[u8]) -> Result<bool, Error> {
        let Some(verifier) = &self.0.verifier else {
            return Err(Error::bad_argument("std verifies no signatures: give Options::verifier."));
        };
        Ok(self.keys(key).iter().any(|one| verifier(one, message, signature)))
    }

    /// How it stands.
    #[must_use]
    pub fn state(&self) -> State {
        let links = self.0.lock();
        let (address, client) = (links.route.addresses[links.route.at].clone(), links.client.clone());
        let connections = links.links.iter().filter(|link| link.is_ready()).count();
        State { address, connections, client, open: links.unsettled, trouble: links.trouble.clone() }
    }

    /// End: fail what was not sent, wait for the answers of the rest until their deadlines, disconnect.
    pub fn close(self) {
        let until = self.0.with(|links| {
            links.closing = true;
            links.fail(false);
            links.last_deadline()
        });
        let left = until.map_or(Duration::ZERO, |until| (until + GRACE).saturating_duration_since(Instant::now()));
        let waits = |links: &mut Links| links.unsettled > 0;
        drop(self.0.changed.wait_timeout_while(self.0.lock(), left, waits));
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.0.with(Links::end);
    }
}

/// A request that was made. Dropped, it is withdrawn.
#[must_use]
pub struct Pending {
    shared: Arc<Shared>,
    reply: Arc<Reply>,
    deadline: Instant,
}

impl Pending {
    /// Wait for the signature, until a moment after the deadline.
    pub fn wait(self) -> Result<Signature, Error> {
        let Answer::Signed(signature, frame) = self.outcome()? else { return Err(strange()) };
        let verifies = |verifier: &Verifier| {
            signature.key.as_ref().is_some_and(|key| verifier(key, &frame[MESSAGE_AT..], &signature.bytes))
        };
        if self.shared.verifier.as_ref().is_none_or(verifies) {
            return Ok(signature);
        }
        let error = Error::new(Code::SignatureInvalid, "The gateway's signature is none of the payload by the key.");
        Err(error.or_maybe_signed(true))
    }

    /// Whether `wait` would return at once.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.reply.is_settled()
    }

    /// Withdraw it. It may be signed all the same.
    pub fn cancel(self) {}

    fn outcome(&self) -> Outcome {
        let withdrawn = || {
            self.shared.with(|links| links.withdraw(&self.reply, Job::late));
            self.reply.wait(Instant::now() + GRACE) // for another thread that is about to tell
        };
        self.reply.wait(self.deadline + GRACE).or_else(withdrawn).unwrap_or_else(|| Err(Error::closed()))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.is_settled() {
            let reason = |job: &Job, _: Option<&Error>| {
                let error = Error::new(Code::Cancelled, "The request was withdrawn by its caller.");
                error.or_maybe_signed(job.maybe_signed())
            };
            self.shared.with(|links| links.withdraw(&self.reply, reason));
        }
    }
}

fn strange() -> Error {
    Error::lost("The gateway answered something else.")
}

fn random() -> io::Result<[u8; NONCE_BYTES]> {
    let mut nonce = [0; NONCE_BYTES];
    File::open("/dev/urandom")?.read_exact(&mut nonce)?;
    Ok(nonce)
}
