//! One request, from the call until its outcome is known.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::error::Error;
use crate::tables::{Code, SIGN};
use crate::wire::{Key, Signature};

/// What a request is answered.
pub enum Answer {
    Signed(Signature),
    Done(String),
}

pub struct Job {
    /// The name of its key manager.
    pub slot: String,
    pub deadline: Instant,
    state: Mutex<State>,
    settled: Condvar,
}

/// What the connections and the caller look at. Its lock is taken after that of the connections.
#[derive(Default)]
pub struct State {
    /// Its frame; what a connection decides is stamped when it is sent.
    pub frame: Vec<u8>,
    /// The public key that alone may sign it: the caller insists, or it may have done so already.
    pub pin: Option<Vec<u8>>,
    /// The key that it was sent for.
    pub key: Option<Arc<Key>>,
    /// When it was sent, unless it was refused.
    pub sent: Option<Instant>,
    /// An attempt at another gateway process, or too long ago, may have had it signed.
    pub uncertain: bool,
    /// The key that refused it, as no longer the current one.
    pub refused_by: Option<Arc<Key>>,
    pub refusal: Option<Error>,
    pub refusals: u32,
    pub outcome: Option<Result<Answer, Error>>,
    pub done: bool,
    pub waits: bool,
}

impl Job {
    pub fn new(frame: Vec<u8>, slot: &str, pin: Option<Vec<u8>>, deadline: Instant) -> Self {
        let state = Mutex::new(State { frame, pin, ..State::default() });
        Self { slot: slot.into(), deadline, state, settled: Condvar::new() }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wake the caller.
    pub fn wake(&self) {
        self.settled.notify_one();
    }

    /// Wait for the outcome until then.
    pub fn wait(&self, until: Instant) -> Option<Result<Answer, Error>> {
        let mut state = self.state();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if state.done || left.is_zero() {
                return state.outcome.take();
            }
            state.waits = true;
            state = self.settled.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl State {
    pub fn signs(&self) -> bool {
        self.frame[4] == SIGN
    }

    /// Whether a signature may exist although no answer came.
    pub fn maybe_signed(&self) -> bool {
        self.signs() && (self.sent.is_some() || self.uncertain)
    }

    /// The error of one whose deadline has passed; `trouble`: why nothing could be sent, if that is so.
    pub fn late(&self, trouble: Option<&Error>) -> Error {
        let why = trouble.map_or("", |error| &error.text);
        let text = format!("The deadline passed before the gateway answered. {why}");
        let error = Error { retryable: true, ..Error::new(Code::DeadlineExceeded, text.trim_end()) };
        self.refusal.clone().unwrap_or(error).or_maybe_signed(self.maybe_signed())
    }
}
