//! All connections, and the requests on them and before them. What a request that was broken off may do next, docs/WIRE.md
//! of hsmcore says. Everything here happens under one lock, and does not block.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io::Write;
use std::mem::take;
use std::sync::{Arc, Condvar};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::job::{Answer, Job, State};
use crate::route::{jittered, Route};
use crate::tables::*;
use crate::wire::{self, Frame, Key, Welcome, WireError};

/// Answers after which the gateway is told what it need not remember any more.
const ACK_EVERY: u32 = 32;
/// How long a gateway that is left may take for what is open.
const LEAVE: Duration = Duration::from_secs(1);
/// How soon a holder is asked again that is not sure to be one.
const DOUBT: Duration = Duration::from_millis(20);
const MOST_DOUBLINGS: u32 = 3;

/// A key manager of the gateway, as a connection numbers it.
pub struct Slot {
    number: u16,
    pub keys: Vec<Arc<Key>>,
}

impl Slot {
    pub fn current(&self) -> Option<&Arc<Key>> {
        self.keys.iter().find(|key| key.current)
    }

    fn of(&self, public_key: &[u8]) -> Option<&Arc<Key>> {
        self.keys.iter().find(|key| key.public_key == public_key)
    }
}

pub type Slots = Arc<HashMap<String, Slot>>;
pub type Writer = Box<dyn Write + Send>;

/// Where a connection stands.
#[derive(Clone, Copy, PartialEq)]
enum Phase {
    /// There is none; one is made then.
    Away(Instant),
    /// It has until then for the gateway's first word.
    Meets(Instant),
    Ready,
    /// It takes no new requests, and ends then, or once all are answered.
    Leaves(Instant),
}

impl Default for Phase {
    fn default() -> Self {
        Phase::Away(Instant::now())
    }
}

#[derive(Default)]
pub struct Link {
    phase: Phase,
    /// The number of the connection: what one before it says is not heard.
    attempt: u64,
    out: Vec<u8>,
    writer: Option<Writer>,
    hang_up: Option<Box<dyn Fn() + Send>>,
    /// Tells its thread, which sleeps, that there is something to do.
    pub work: Arc<Condvar>,
    pub sleeps: bool,
    stirred: bool,
    /// Requests that were sent and not answered, by their numbers.
    open: BTreeMap<u64, Arc<Job>>,
    slots: Slots,
    names: Vec<String>,
    nonce: [u8; NONCE_BYTES],
    instance: [u8; NONCE_BYTES],
    remember: Duration,
    next: u64,
    answered: u32,
    /// Where in the route it is.
    at: usize,
    useful: bool,
    heard: Option<Instant>,
    /// When it is looked whether there was a sign of life.
    beat: Option<Instant>,
    quiet: bool,
    reason: Option<Error>,
}

impl Link {
    pub fn new(nonce: [u8; NONCE_BYTES]) -> Self {
        Self { nonce, next: 1, ..Self::default() }
    }

    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Ready
    }

    fn is_made(&self) -> bool {
        matches!(self.phase, Phase::Ready | Phase::Leaves(_))
    }

    pub fn has_work(&self) -> bool {
        self.stirred || !self.out.is_empty() && self.writer.is_some()
    }

    fn learn(&mut self, keys: Vec<Key>) {
        let slot = |(number, name): (u16, &String)| (name.clone(), Slot { number, keys: Vec::new() });
        let mut slots: HashMap<String, Slot> = (0..).zip(&self.names).map(slot).collect();
        for key in keys {
            if let Some(slot) = self.names.get(usize::from(key.slot)).and_then(|name| slots.get_mut(name)) {
                slot.keys.push(Arc::new(key));
            }
        }
        self.slots = Arc::new(slots);
    }

    fn put(&mut self, request: u64, slot: u16, state: &mut State, again: bool) {
        if state.signs() {
            wire::stamp_again(&mut state.frame, again);
        }
        wire::stamp(&mut state.frame, request, slot);
        self.out.extend_from_slice(&state.frame);
    }

    /// Have a connection without a sign of life tested. Returns why it is given up, if it is.
    fn beats(&mut self, now: Instant, ping: Duration) -> Option<&'static str> {
        if !self.is_made() || self.beat.is_some_and(|beat| now < beat) {
            return None;
        }
        self.beat = Some(now + ping);
        if self.quiet {
            return Some("there was no sign of life");
        }
        self.quiet = self.heard.is_none_or(|heard| now - heard >= ping);
        if self.quiet {
            self.out.extend(wire::ping(&[]));
        }
        None
    }

    /// Send no more here, and connect to the next gateway once all is answered.
    fn leave(&mut self, within: Duration) {
        if self.is_ready() {
            self.phase = Phase::Leaves(Instant::now() + within);
            self.stirred = true;
        }
    }
}

/// Requests for one key manager.
#[derive(Default)]
struct Line {
    queue: VecDeque<Arc<Job>>,
    /// Credits that are in use.
    taken: u32,
}

/// What becomes of a request that was answered.
enum Next {
    /// It is sent again, as a new request, before others.
    Again,
    Later(Duration),
    /// It waits until another key is the current one.
    Rekeyed,
    Settled(Result<Answer, Error>),
}

impl State {
    /// Whether a request that a host without the epoch has refused goes on: what may have been signed only for the same
    /// key, and only for Ed25519.
    fn may_move(&mut self, error: &Error) -> bool {
        if !self.signs() || self.done {
            return false;
        }
        if error.maybe_signed || self.uncertain {
            let same = self.key.as_ref().filter(|key| key.algorithm == Algorithm::Ed25519);
            self.pin = same.map(|key| key.public_key.clone());
            self.uncertain = true;
            return same.is_some();
        }
        self.sent = None;
        true
    }

    /// What becomes of one that was refused.
    fn refused(&mut self, error: Error, leaves: bool, deadline: Instant) -> Next {
        if error.maybe_signed || self.uncertain || self.done {
            return Next::Settled(Err(error));
        }
        self.sent = None;
        if leaves && error.retryable {
            return Next::Again;
        }
        if error.code == Code::QueueFull && error.retryable && error.retry_after_ms > 0 {
            // Each time it waits longer: many may have been told the same.
            let pause = Duration::from_millis(error.retry_after_ms.into()) * 2u32.pow(1 + self.refusals);
            self.refusals = (self.refusals + 1).min(MOST_DOUBLINGS);
            let pause = jittered(pause);
            if Instant::now() + pause < deadline {
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

/// What the thread of a connection does.
pub enum Step {
    Dial(String, u64),
    Write(Vec<u8>, Writer, u64),
    SleepUntil(Instant),
    End,
}

#[derive(Default)]
pub struct Settings {
    pub connect_timeout: Duration,
    pub ping: Duration,
    pub max_waiting: usize,
    pub program: String,
}

#[derive(Default)]
pub struct Links {
    pub route: Route,
    pub links: Vec<Link>,
    pub settings: Settings,
    lines: HashMap<String, Line>,
    /// Requests for which there was no room, until there may be some.
    resting: Vec<(Instant, Arc<Job>)>,
    /// Requests that a key refused, until the gateway says which other one signs.
    parked: Vec<Arc<Job>>,
    pub client: String,
    credits: u32,
    pub slots: Slots,
    told_at: usize,
    /// Requests whose outcome is not known.
    pub unsettled: usize,
    /// A gateway has answered; or why none will.
    pub opened: Option<Result<(), Error>>,
    pub closing: bool,
    pub ended: bool,
    pub trouble: Option<Error>,
    /// Callers to be woken once the lock is free, and whether others may be concerned.
    pub wakes: Vec<Arc<Job>>,
    pub news: bool,
}

impl Links {
    pub fn new(route: Route, links: Vec<Link>, settings: Settings) -> Self {
        Self { route, links, settings, ..Self::default() }
    }

    // ---- requests ----------------------------------------------------------------------------------------------------

    /// Take a request.
    pub fn submit(&mut self, job: &Arc<Job>) -> Result<(), Error> {
        if self.closing {
            return Err(Error::closed());
        }
        let most = self.settings.max_waiting;
        let line = self.lines.entry(job.slot.clone()).or_default();
        if line.queue.len() + self.resting.len() >= most {
            line.queue.retain(|one| !one.state().done);
            if line.queue.len() + self.resting.len() >= most {
                let error = Error::new(Code::QueueFull, format!("{most} requests wait to be sent."));
                return Err(Error { retryable: true, ..error });
            }
        }
        line.queue.push_back(job.clone());
        self.unsettled += 1;
        self.pump(&job.slot);
        Ok(())
    }

    /// Give a request up, for this reason, unless it is settled.
    pub fn withdraw(&mut self, job: &Arc<Job>, reason: impl FnOnce(&State, Option<&Error>) -> Error) {
        let mut state = job.state();
        let trouble = self.trouble.as_ref().filter(|_| !self.links.iter().any(Link::is_ready));
        let error = reason(&state, trouble);
        if !self.settle(job, &mut state, Err(error)) {
            return;
        }
        drop(state);
        for link in self.links.iter_mut().filter(|link| link.is_made()) {
            if let Some((number, _)) = link.open.iter().find(|(_, one)| Arc::ptr_eq(one, job)) {
                link.out.extend(wire::about(CANCEL, *number));
            }
        }
        self.resting.retain(|(_, one)| !Arc::ptr_eq(one, job));
        self.parked.retain(|one| !Arc::ptr_eq(one, job));
    }

    /// Fail what was not sent, or all.
    pub fn fail(&mut self, all: bool) {
        let queued = self.lines.values_mut().flat_map(|line| take(&mut line.queue));
        let mut jobs: Vec<Arc<Job>> = queued.chain(take(&mut self.parked)).collect();
        jobs.extend(take(&mut self.resting).into_iter().map(|(_, job)| job));
        if all {
            jobs.extend(self.links.iter().flat_map(|link| link.open.values().cloned()));
        }
        for job in jobs {
            let mut state = job.state();
            let maybe = state.maybe_signed();
            self.settle(&job, &mut state, Err(Error::closed().or_maybe_signed(maybe)));
        }
    }

    /// When the last of the requests that were sent is late.
    pub fn last_deadline(&self) -> Option<Instant> {
        self.links.iter().flat_map(|link| link.open.values()).map(|job| job.deadline).max()
    }

    fn settle(&mut self, job: &Arc<Job>, state: &mut State, outcome: Result<Answer, Error>) -> bool {
        if std::mem::replace(&mut state.done, true) {
            return false;
        }
        let uncertain = state.uncertain && state.signs();
        state.outcome = Some(outcome.map_err(|error| error.or_maybe_signed(uncertain)));
        if state.waits {
            self.wakes.push(job.clone());
        }
        self.unsettled -= 1;
        self.news |= self.unsettled == 0;
        true
    }

    /// Send what may be sent.
    fn pump(&mut self, slot: &str) {
        let now = Instant::now();
        while let Some(line) = self.lines.get_mut(slot) {
            let most = if self.route.seeking { self.credits.min(1) } else { self.credits };
            if line.taken >= most || line.queue.is_empty() {
                return;
            }
            let Some(job) = line.queue.pop_front() else { return };
            let mut state = job.state();
            if state.done {
                continue;
            }
            if now >= job.deadline {
                let error = state.late(self.trouble.as_ref());
                self.settle(&job, &mut state, Err(error));
                continue;
            }
            let Some(at) = self.pick(slot, state.refused_by.as_deref()) else {
                let elsewhere = state.refused_by.is_some() && self.pick(slot, None).is_some();
                drop(state);
                if elsewhere {
                    self.parked.push(job);
                    continue;
                }
                self.lines.entry(job.slot.clone()).or_default().queue.push_front(job);
                return;
            };
            match self.stamp(at, &job, &mut state, now) {
                Err(error) => {
                    self.settle(&job, &mut state, Err(error));
                }
                Ok(number) => {
                    let link = &mut self.links[at];
                    link.put(link.next, number, &mut state, false);
                    drop(state);
                    link.open.insert(link.next, job);
                    link.next += 1;
                    self.lines.entry(slot.into()).or_default().taken += 1;
                }
            }
        }
    }

    fn pump_all(&mut self) {
        for slot in self.lines.keys().cloned().collect::<Vec<_>>() {
            self.pump(&slot);
        }
    }

    /// The connection with the fewest open requests that does not sign with this key.
    fn pick(&self, slot: &str, without: Option<&Key>) -> Option<usize> {
        let signs = |link: &Link, key: &Key| {
            link.slots.get(slot).and_then(Slot::current).is_some_and(|one| one.public_key == key.public_key)
        };
        let fits = |link: &Link| link.is_ready() && !without.is_some_and(|key| signs(link, key));
        let all = self.links.iter().enumerate().filter(|(_, link)| fits(link));
        all.min_by_key(|(_, link)| link.open.len()).map(|(at, _)| at)
    }

    /// Say in a frame by which key it is to be signed. Returns the number of the key manager.
    fn stamp(&self, at: usize, job: &Job, state: &mut State, now: Instant) -> Result<u16, Error> {
        let slots = &self.links[at].slots;
        let Some(slot) = slots.get(&job.slot) else {
            let offered: Vec<&str> = slots.keys().map(String::as_str).collect();
            let text = format!("The gateway offers this client no key manager {:?}, but {offered:?}.", job.slot);
            return Err(Error::new(Code::PolicyRefused, text));
        };
        if state.signs() {
            let key = match &state.pin {
                None => slot.current(),
                Some(pin) => Some(slot.of(pin).ok_or_else(|| {
                    Error::new(Code::KeyNotFound, "The gateway does not list the key that alone may sign this.")
                })?),
            };
            let left = job.deadline.saturating_duration_since(now).as_millis().max(1);
            // None is known to sign, as in an emergency: the gateway chooses.
            wire::stamp_version(&mut state.frame, key.map_or(0, |key| key.version));
            wire::stamp_timeout(&mut state.frame, u32::try_from(left).unwrap_or(u32::MAX));
            (state.key, state.sent) = (key.cloned(), Some(now));
        }
        Ok(slot.number)
    }

    /// A request is off a connection.
    fn release(&mut self, at: usize, request: u64) {
        if let Some(job) = self.links[at].open.remove(&request) {
            if let Some(line) = self.lines.get_mut(&job.slot) {
                line.taken -= 1;
            }
        }
    }

    // ---- what the gateway says ---------------------------------------------------------------------------------------

    /// Take bytes. Returns how many were read, and how many there must be from there on before it is worth to come again.
    /// None: the connection has ended.
    pub fn feed(&mut self, at: usize, attempt: u64, data: &[u8]) -> Option<(usize, usize)> {
        let mut read = 0;
        self.links[at].heard = Some(Instant::now());
        let fault = loop {
            let link = &mut self.links[at];
            if link.attempt != attempt {
                return None;
            }
            link.quiet = false;
            match wire::cut(&data[read..]) {
                Ok(Err(wanted)) => return Some((read, wanted)),
                Err(error) => break error.into(),
                Ok(Ok((frame, size))) => {
                    read += size;
                    if let Err(error) = self.take(at, &frame) {
                        break error;
                    }
                }
            }
        };
        self.gone(at, attempt, fault);
        None
    }

    fn take(&mut self, at: usize, frame: &Frame) -> Result<(), Error> {
        let link = &mut self.links[at];
        if frame.kind == ERROR && frame.request == 0 {
            link.reason = Some(wire::read_error(frame.body)?);
            return Ok(());
        }
        if !link.is_made() {
            if frame.kind != WELCOME {
                return Err(WireError(format!("type {} before WELCOME", frame.kind)).into());
            }
            return self.welcome(at, wire::read_welcome(frame.body)?);
        }
        match frame.kind {
            KEYS => {
                link.learn(wire::read_keys(frame.body)?);
                self.keys_changed(at);
            }
            CREDIT => {
                self.credits = wire::read_credit(frame.body)?;
                self.pump_all();
            }
            PONG => {
                wire::read_pong(frame.body)?;
                link.useful = true;
            }
            GOAWAY => {
                let (left_ms, _) = wire::read_goaway(frame.body)?;
                link.leave(LEAVE + Duration::from_millis(left_ms.into()));
            }
            WELCOME => return Err(WireError("a second WELCOME".into()).into()),
            kind => match link.open.get(&frame.request).cloned() {
                Some(job) => return self.answer(at, &job, frame),
                None if frame.request < link.next => {}
                None => return Err(WireError(format!("type {kind} answers {}, not asked", frame.request)).into()),
            },
        }
        Ok(())
    }

    fn welcome(&mut self, at: usize, found: Welcome) -> Result<(), Error> {
        let link = &mut self.links[at];
        link.names = found.slots;
        link.learn(found.keys);
        let others = |(name, slot): (&String, &Slot)| {
            let known = self.slots.get(name).map_or(&[][..], |known| &known.keys);
            let known: HashSet<&[u8]> = known.iter().map(|key| &key.public_key[..]).collect();
            !known.is_empty()
                && !slot.keys.is_empty()
                && !slot.keys.iter().any(|key| known.contains(&key.public_key[..]))
        };
        if link.at != self.told_at && link.slots.iter().any(others) {
            let text = "it lists other keys: it is of another fleet. Take it off the list.";
            return Err(Error::new(Code::KeyMismatch, text));
        }
        let same = link.instance == found.instance;
        link.instance = found.instance;
        link.remember = Duration::from_millis(found.remember_ms.into());
        link.phase = Phase::Ready;
        link.beat = Some(Instant::now() + self.settings.ping);
        self.route.dead.remove(&link.at);
        self.resend(at, same);
        (self.client, self.credits) = (found.client, found.credits);
        self.opened.get_or_insert(Ok(()));
        self.news = true;
        self.keys_changed(at);
        self.pump_all();
        Ok(())
    }

    /// Send what is open again, on a new connection.
    fn resend(&mut self, at: usize, same: bool) {
        let now = Instant::now();
        for (request, job) in self.links[at].open.clone() {
            let (link, mut state) = (&mut self.links[at], job.state());
            let slot = link.slots.get(&job.slot);
            let mut number = slot.map(|slot| slot.number);
            if !same || state.sent.is_none_or(|sent| now - sent >= link.remember) {
                // It is remembered nowhere: only a signature that comes out the same may be asked for again.
                state.uncertain = true;
                let before = state.key.as_ref().map_or(&[][..], |key| &key.public_key);
                let key =
                    slot.and_then(|slot| slot.of(before)).filter(|key| key.algorithm == Algorithm::Ed25519).cloned();
                number = number.filter(|_| key.is_some());
                if let Some(key) = key {
                    wire::stamp_version(&mut state.frame, key.version);
                    (state.key, state.sent) = (Some(key), Some(now));
                }
            }
            if let Some(number) = number {
                link.put(request, number, &mut state, true);
                continue;
            }
            self.release(at, request);
            let error = Error::new(
                Code::HostLost,
                "The gateway was lost with the request, and a second signature could differ.",
            );
            self.settle(&job, &mut state, Err(error.or_maybe_signed(true)));
        }
    }

    fn keys_changed(&mut self, at: usize) {
        (self.slots, self.told_at) = (self.links[at].slots.clone(), self.links[at].at);
        // Each connection is told on its own, so also where the news is none any more.
        for job in take(&mut self.parked) {
            self.go(&job, Next::Rekeyed);
            self.pump(&job.slot);
        }
    }

    fn answer(&mut self, at: usize, job: &Arc<Job>, frame: &Frame) -> Result<(), Error> {
        let (link, mut state) = (&mut self.links[at], job.state());
        let (place, asked) = (link.at, state.frame[4]);
        let value = match (frame.kind, asked) {
            (ERROR, _) => Err(Error { request: Some(frame.request), ..wire::read_error(frame.body)? }),
            (DONE, MANAGE) => Ok(Answer::Done(wire::read_done(frame.body)?)),
            (SIGNED, SIGN) => {
                let mut found = wire::read_signed(frame.body)?;
                let listed = link.slots.get(&job.slot).map_or(&[][..], |slot| &slot.keys);
                found.key =
                    state.key.clone().or_else(|| listed.iter().find(|key| key.version == found.version).cloned());
                if let Some(key) = state.key.as_ref().filter(|key| key.version != found.version) {
                    return Err(WireError(format!("signed by version {}, not {}", found.version, key.version)).into());
                }
                Ok(Answer::Signed(found))
            }
            (kind, _) => return Err(WireError(format!("type {kind} answers type {asked}")).into()),
        };
        let next = match value {
            Ok(answer) => {
                link.useful = true;
                self.route.seeking &= !state.signs();
                Next::Settled(Ok(answer))
            }
            Err(error) if error.code == Code::NotHolder && self.route.several() => {
                let doubts = self.route.refused(place, &error.holder);
                self.links.iter_mut().filter(|one| !doubts && one.at == place).for_each(|one| one.leave(LEAVE));
                if state.may_move(&error) {
                    state.refusal = Some(error);
                    state.refusals += 1;
                    let doubt = jittered(DOUBT * 2u32.pow(state.refusals.min(MOST_DOUBLINGS)));
                    if doubts {
                        Next::Later(doubt)
                    } else {
                        Next::Again
                    }
                } else {
                    Next::Settled(Err(error))
                }
            }
            Err(error) => state.refused(error, !link.is_ready(), job.deadline),
        };
        if let Next::Settled(outcome) = next {
            self.settle(job, &mut state, outcome);
            drop(state);
        } else {
            drop(state);
            self.go(job, next);
        }
        self.release(at, frame.request);
        let link = &mut self.links[at];
        link.answered += 1;
        if link.answered >= ACK_EVERY {
            link.answered = 0;
            let lowest = link.open.first_key_value().map_or(link.next, |(number, _)| *number);
            link.out.extend(wire::about(ACK, lowest));
        }
        link.stirred |= link.open.is_empty() && !link.is_ready();
        self.pump(&job.slot);
        Ok(())
    }

    fn go(&mut self, job: &Arc<Job>, next: Next) {
        let mut state = job.state();
        if state.done {
            return;
        }
        if self.closing {
            self.settle(job, &mut state, Err(Error::closed()));
            return;
        }
        let refused_by = state.refused_by.clone();
        drop(state);
        match next {
            Next::Later(pause) => {
                self.resting.push((Instant::now() + pause, job.clone()));
                self.links.iter_mut().for_each(|link| link.stirred = true);
            }
            Next::Rekeyed
                if self
                    .slots
                    .get(&job.slot)
                    .and_then(Slot::current)
                    .is_some_and(|current| refused_by.is_some_and(|key| key.public_key == current.public_key)) =>
            {
                self.parked.push(job.clone());
            }
            _ => self.lines.entry(job.slot.clone()).or_default().queue.push_front(job.clone()),
        }
    }

    // ---- connections -------------------------------------------------------------------------------------------------

    /// What the thread of a connection does next. `back`: what it has written with.
    pub fn step(&mut self, at: usize, back: Option<(Vec<u8>, Writer, u64)>) -> Step {
        let now = Instant::now();
        let link = &mut self.links[at];
        if let Some((mut buffer, writer, _)) = back.filter(|(_, _, attempt)| link.attempt == *attempt) {
            link.writer = Some(writer);
            if link.out.is_empty() {
                buffer.clear();
                link.out = buffer;
            }
        }
        let (due, later) = take(&mut self.resting).into_iter().partition(|(when, _)| *when <= now);
        self.resting = later;
        for (_, job) in due {
            self.go(&job, Next::Again);
            self.pump(&job.slot);
        }
        let link = &mut self.links[at];
        link.stirred = false;
        let mut wake = self.resting.iter().map(|(when, _)| *when).min().unwrap_or(now + Duration::from_secs(3600));
        let fault = match link.phase {
            _ if self.ended => None,
            Phase::Away(when) if when <= now => return self.begin(at, now),
            Phase::Meets(until) if until <= now => Some("there was no word from it in time"),
            Phase::Leaves(until) if until <= now || link.open.is_empty() && link.out.is_empty() => Some("it was left"),
            Phase::Away(until) | Phase::Meets(until) | Phase::Leaves(until) => {
                wake = wake.min(until);
                None
            }
            Phase::Ready => None,
        };
        let fault = fault.or_else(|| link.beats(now, self.settings.ping));
        if let Some(says) = fault {
            let attempt = link.attempt;
            self.gone(at, attempt, Error::lost(says));
            return self.step(at, None);
        }
        if let Some(writer) = link.writer.take_if(|_| !link.out.is_empty()) {
            return Step::Write(take(&mut link.out), writer, link.attempt);
        }
        if self.ended {
            link.hang_up.take().iter().for_each(|hang_up| hang_up());
            link.attempt += 1;
            return Step::End;
        }
        Step::SleepUntil(link.beat.filter(|_| link.is_made()).map_or(wake, |beat| wake.min(beat)))
    }

    fn begin(&mut self, at: usize, now: Instant) -> Step {
        let try_for = self.route.try_for(self.settings.connect_timeout);
        let link = &mut self.links[at];
        link.at = self.route.at;
        link.phase = Phase::Meets(now + try_for);
        link.attempt += 1;
        link.useful = false;
        link.out = wire::hello(&link.nonce, &self.settings.program);
        Step::Dial(self.route.addresses[link.at].clone(), link.attempt)
    }

    /// A connection was made. Returns whether it is still wanted.
    pub fn connected(&mut self, at: usize, attempt: u64, writer: Writer, hang_up: Box<dyn Fn() + Send>) -> bool {
        let link = &mut self.links[at];
        if self.ended || link.attempt != attempt {
            hang_up();
            return false;
        }
        (link.writer, link.hang_up, link.stirred) = (Some(writer), Some(hang_up), true);
        true
    }

    /// A connection has ended, or was not made.
    pub fn gone(&mut self, at: usize, attempt: u64, error: Error) {
        let link = &mut self.links[at];
        if link.attempt != attempt || self.ended {
            return;
        }
        let (was, place) = (link.is_made(), link.at);
        let sound = link.is_ready() && link.useful;
        link.hang_up.take().iter().for_each(|hang_up| hang_up());
        link.attempt += 1;
        link.out.clear();
        (link.writer, link.stirred) = (None, true);
        let mut error = link.reason.take().unwrap_or(error);
        let hint = if error.code == Code::HostLost { " Is `hsmcore gateway` running there?" } else { "" };
        error.text = format!("{}: {}.{hint}", self.route.addresses[place], error.text.trim_end_matches('.'));
        for (request, job) in link.open.clone() {
            let mut state = job.state();
            // Requests for signatures are kept, to be sent again. Of others, no answer is remembered.
            if !state.signs() || state.done {
                self.release(at, request);
                let broke = Error::new(Code::HostLost, "The connection broke before the gateway answered.");
                self.settle(&job, &mut state, Err(broke));
            }
        }
        let now = Instant::now();
        if was && self.links[at].useful && !self.route.seeking {
            self.route.begin();
        }
        self.links[at].phase = Phase::Away(now);
        if !sound {
            let stays = self.links.iter().any(|one| one.is_ready() && one.at == place);
            self.route.next(place, None, stays, error.code != Code::HostLost);
            self.links[at].phase = Phase::Away(self.route.when(now));
        }
        if !was && self.route.several() {
            self.route.dead.insert(place);
        }
        // A refusal does not become better by asking again.
        let tries = self.route.several() && self.route.rounds == 0;
        if !tries && error.code != Code::HostLost && !error.retryable {
            self.opened.get_or_insert(Err(error.clone()));
            self.news = true;
        }
        self.trouble = Some(error);
        self.pump_all();
    }

    /// End: disconnect, once what is written already is sent.
    pub fn end(&mut self) {
        self.closing = true;
        self.fail(true);
        for link in &mut self.links {
            if link.is_made() {
                link.out.extend(wire::about(ACK, link.next)); // what was answered need not be remembered any more
            }
            link.stirred = true;
        }
        self.ended = true;
    }
}
