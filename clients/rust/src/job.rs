//! One request, from the call until its outcome is known, and where its caller finds that.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::route::jittered;
use crate::tables::{Algorithm, Code, SIGN};
use crate::wire::{Key, Signature, TYPE_AT};

/// How soon a holder is asked again that is not sure to be one.
const DOUBT: Duration = Duration::from_millis(20);
const MOST_DOUBLINGS: u32 = 3;

/// What a request is answered.
pub enum Answer {
    /// A signature, and the frame that asked for it.
    Signed(Signature, Vec<u8>),
    Done(String),
}

pub type Outcome = Result<Answer, Error>;

#[derive(Default)]
enum Told {
    #[default]
    Nothing,
    /// Nothing, and the caller waits.
    Awaited,
    Outcome(Outcome),
    Taken,
}

/// Where a caller finds the outcome of its request.
#[derive(Default)]
pub struct Reply {
    told: Mutex<Told>,
    changed: Condvar,
}

impl Reply {
    fn lock(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn tell(&self, outcome: Outcome) {
        if let Told::Awaited = std::mem::replace(&mut *self.lock(), Told::Outcome(outcome)) {
            self.changed.notify_one();
        }
    }

    pub fn is_settled(&self) -> bool {
        matches!(*self.lock(), Told::Outcome(_) | Told::Taken)
    }

    /// Take the outcome, for which it waits until then.
    pub fn wait(&self, until: Instant) -> Option<Outcome> {
        let mut told = self.lock();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match std::mem::replace(&mut *told, Told::Taken) {
                Told::Outcome(outcome) => return Some(outcome),
                Told::Taken => return None,
                _ if left.is_zero() => *told = Told::Nothing,
                _ => *told = Told::Awaited,
            }
            if left.is_zero() {
                return None;
            }
            told = self.changed.wait_timeout(told, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// What the connections know of a request. It stands in one place: in a line, aside, or on a connection.
pub struct Job {
    /// The name of its key manager.
    pub slot: Arc<str>,
    pub deadline: Instant,
    /// Its frame; what a connection decides is stamped when it is sent.
    pub frame: Vec<u8>,
    /// The public key that alone may sign it: the caller insists, or it may have done so already.
    pub pin: Option<Vec<u8>>,
    pub reply: Arc<Reply>,
    /// Its caller was told. A connection keeps it until the answer comes.
    pub done: bool,
    /// The key that it was sent for.
    pub key: Option<Arc<Key>>,
    /// When it was sent, unless it was refused.
    pub sent: Option<Instant>,
    /// An attempt at another gateway process, or too long ago, may have had it signed.
    pub uncertain: bool,
    /// The key that refused it, as no longer the current one.
    pub refused_by: Option<Arc<Key>>,
    refusal: Option<Error>,
    refusals: u32,
}

/// What becomes of a request that was answered.
pub enum Next {
    /// It is sent again, as a new request, before others.
    Again,
    Later(Duration),
    /// It waits until another key is the current one.
    Rekeyed,
    Settled(Outcome),
}

impl Job {
    pub fn new(frame: Vec<u8>, slot: &str, pin: Option<Vec<u8>>, deadline: Instant) -> Box<Self> {
        Box::new(Self {
            slot: slot.into(),
            deadline,
            frame,
            pin,
            reply: Arc::default(),
            done: false,
            key: None,
            sent: None,
            uncertain: false,
            refused_by: None,
            refusal: None,
            refusals: 0,
        })
    }

    pub fn signs(&self) -> bool {
        self.frame[TYPE_AT] == SIGN
    }

    /// Whether a signature may exist although no answer came.
    pub fn maybe_signed(&self) -> bool {
        self.signs() && (self.sent.is_some() || self.uncertain)
    }

    /// The key that may be asked for the same signature again: by another process, or later.
    pub fn repeats(&self) -> Option<&Arc<Key>> {
        self.key.as_ref().filter(|key| key.algorithm == Algorithm::Ed25519)
    }

    /// The error of one whose deadline has passed; `trouble`: why nothing could be sent, if that is so.
    pub fn late(&self, trouble: Option<&Error>) -> Error {
        let why = trouble.map_or("", |error| &error.text);
        let text = format!("The deadline passed before the gateway answered. {why}");
        let error = Error { retryable: true, ..Error::new(Code::DeadlineExceeded, text.trim_end()) };
        self.refusal.clone().unwrap_or(error).or_maybe_signed(self.maybe_signed())
    }

    /// A pause before it is sent again, each time a longer one: many may have been told the same.
    fn pause(&mut self, first: Duration) -> Duration {
        self.refusals = (self.refusals + 1).min(MOST_DOUBLINGS);
        jittered(first * 2u32.pow(self.refusals))
    }

    /// What becomes of one that a host without the epoch has refused, which `doubts` that, or not. What may have been
    /// signed goes on only for the same key, and only for Ed25519.
    pub fn moved(&mut self, error: Error, doubts: bool) -> Next {
        self.uncertain |= error.maybe_signed;
        let key = self.repeats().map(|key| key.public_key.clone());
        if !self.signs() || self.done || self.uncertain && key.is_none() {
            return Next::Settled(Err(error));
        }
        if self.uncertain {
            self.pin = key;
        } else {
            self.sent = None;
        }
        self.refusal = Some(error);
        let pause = self.pause(DOUBT);
        if doubts {
            Next::Later(pause)
        } else {
            Next::Again
        }
    }

    /// What becomes of one that was refused, by a gateway that takes no new ones (`leaves`) or does.
    pub fn refused(&mut self, error: Error, leaves: bool) -> Next {
        if error.maybe_signed || self.uncertain || self.done {
            return Next::Settled(Err(error));
        }
        self.sent = None;
        if leaves && error.retryable {
            return Next::Again;
        }
        if error.code == Code::QueueFull && error.retryable && error.retry_after_ms > 0 {
            let pause = self.pause(Duration::from_millis(error.retry_after_ms.into()));
            if Instant::now() + pause < self.deadline {
                return Next::Later(pause);
            }
        }
        if error.code == Code::KeyNotCurrent && self.pin.is_none() && self.refused_by.is_none() && self.key.is_some() {
            (self.refused_by, self.refusal) = (self.key.clone(), Some(error));
            return Next::Rekeyed;
        }
        Next::Settled(Err(error))
    }
}
