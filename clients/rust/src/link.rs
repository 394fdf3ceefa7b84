//! All connections, and the requests on them and before them. What a request that was broken off may do next, docs/WIRE.md
//! of hsmcore says. Everything here happens under one lock, and does not block.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io::Write;
use std::mem::take;
use std::sync::{Arc, Condvar};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::job::{Answer, Job, Next, Outcome, Reply};
use crate::route::Route;
use crate::tables::*;
use crate::wire::{self, bad, stamp, Frame, Key, Said, Signature, Welcome};
use crate::wire::{FLAGS_AT, REQUEST_AT, SLOT_AT, TIMEOUT_AT, TYPE_AT, VERSION_AT};

/// Answers after which the gateway is told what it need not remember any more.
const ACK_EVERY: u32 = 32;
/// How long a gateway that is left may take for what is open.
const LEAVE: Duration = Duration::from_secs(1);

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

pub type Slots = Arc<HashMap<Arc<str>, Slot>>;
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
    open: BTreeMap<u64, Box<Job>>,
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
        let slot = |(number, name): (u16, &String)| (name.as_str().into(), Slot { number, keys: Vec::new() });
        let mut slots: HashMap<Arc<str>, Slot> = (0..).zip(&self.names).map(slot).collect();
        for key in keys {
            if let Some(slot) = self.names.get(usize::from(key.slot)).and_then(|name| slots.get_mut(name.as_str())) {
                slot.keys.push(Arc::new(key));
            }
        }
        self.slots = Arc::new(slots);
    }

    /// Say in a frame by which key it is to be signed, and until when. Returns the number of the key manager.
    fn stamp(&self, job: &mut Job, now: Instant) -> Result<u16, Error> {
        let Some(slot) = self.slots.get(&job.slot) else {
            let offered: Vec<&str> = self.slots.keys().map(AsRef::as_ref).collect();
            let text = format!("The gateway offers this client no key manager {:?}, but {offered:?}.", job.slot);
            return Err(Error::new(Code::PolicyRefused, text));
        };
        if job.signs() {
            let none = || Error::new(Code::KeyNotFound, "The gateway does not list the key that alone may sign this.");
            let key = match &job.pin {
                None => slot.current(),
                Some(pin) => Some(slot.of(pin).ok_or_else(none)?),
            };
            let left = job.deadline.saturating_duration_since(now).as_millis().max(1);
            // None is known to sign, as in an emergency: the gateway chooses.
            stamp(&mut job.frame, VERSION_AT, key.map_or(0, |key| key.version).to_le_bytes());
            stamp(&mut job.frame, TIMEOUT_AT, u32::try_from(left).unwrap_or(u32::MAX).to_le_bytes());
            (job.key, job.sent) = (key.cloned(), Some(now));
        }
        Ok(slot.number)
    }

    /// Send a request. It is open from now on.
    fn put(&mut self, request: u64, slot: u16, mut job: Box<Job>, again: bool) {
        if job.signs() {
            job.frame[FLAGS_AT] = job.frame[FLAGS_AT] & HAS_POSITION | if again { AGAIN } else { 0 };
        }
        stamp(&mut job.frame, SLOT_AT, slot.to_le_bytes());
        stamp(&mut job.frame, REQUEST_AT, request.to_le_bytes());
        self.out.extend_from_slice(&job.frame);
        self.open.insert(request, job);
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
    queue: VecDeque<Box<Job>>,
    /// Credits that are in use.
    taken: u32,
}

/// The connection with the fewest open requests that does not sign with this key.
fn pick(links: &[Link], name: &str, without: Option<&Key>) -> Option<usize> {
    let signs = |link: &Link, key: &Key| {
        link.slots.get(name).and_then(Slot::current).is_some_and(|one| one.public_key == key.public_key)
    };
    let fits = |link: &Link| link.is_ready() && !without.is_some_and(|key| signs(link, key));
    let all = links.iter().enumerate().filter(|(_, link)| fits(link));
    all.min_by_key(|(_, link)| link.open.len()).map(|(at, _)| at)
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
    lines: HashMap<Arc<str>, Line>,
    /// Requests that wait for a time, such as those for which there was no room, or (None) until the gateway says which
    /// other key signs.
    aside: Vec<(Option<Instant>, Box<Job>)>,
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
    /// What callers are told once the lock is free, and whether others may be concerned.
    pub told: Vec<(Arc<Reply>, Outcome)>,
    pub news: bool,
}

impl Links {
    pub fn new(route: Route, links: Vec<Link>, settings: Settings) -> Self {
        Self { route, links, settings, ..Self::default() }
    }

    // ---- requests ----------------------------------------------------------------------------------------------------

    /// Take a request.
    pub fn submit(&mut self, job: Box<Job>) -> Result<(), Error> {
        if self.closing {
            return Err(Error::closed());
        }
        let (most, name) = (self.settings.max_waiting, job.slot.clone());
        let line = self.lines.entry(name.clone()).or_default();
        if line.queue.len() + self.aside.len() >= most {
            let error = Error::new(Code::QueueFull, format!("{most} requests wait to be sent."));
            return Err(Error { retryable: true, ..error });
        }
        line.queue.push_back(job);
        self.unsettled += 1;
        self.pump(&name);
        Ok(())
    }

    /// Give a request up, for this reason, unless it is settled.
    pub fn withdraw(&mut self, reply: &Arc<Reply>, reason: impl FnOnce(&Job, Option<&Error>) -> Error) {
        let is = |job: &Job| Arc::ptr_eq(&job.reply, reply);
        let trouble = self.trouble.clone().filter(|_| !self.links.iter().any(Link::is_ready));
        for at in 0..self.links.len() {
            let link = &mut self.links[at];
            let found = link.open.iter().find(|(_, job)| is(job)).map(|(number, _)| *number);
            if let Some((number, mut job)) = found.and_then(|number| link.open.remove_entry(&number)) {
                if link.is_made() {
                    link.out.extend(wire::about(CANCEL, number));
                }
                let error = reason(&job, trouble.as_ref());
                self.settle(&mut job, Err(error));
                self.links[at].open.insert(number, job);
                return;
            }
        }
        let queues = self.lines.values_mut().map(|line| &mut line.queue);
        let mut queued =
            queues.filter_map(|queue| queue.iter().position(|job| is(job)).and_then(|at| queue.remove(at)));
        let aside = || self.aside.iter().position(|(_, job)| is(job)).map(|at| self.aside.swap_remove(at).1);
        if let Some(mut job) = queued.next().or_else(aside) {
            let error = reason(&job, trouble.as_ref());
            self.settle(&mut job, Err(error));
        }
    }

    /// Fail what was not sent, or all.
    pub fn fail(&mut self, all: bool) {
        let queued = self.lines.values_mut().flat_map(|line| take(&mut line.queue));
        let mut jobs: Vec<Box<Job>> = queued.chain(take(&mut self.aside).into_iter().map(|(_, job)| job)).collect();
        if all {
            jobs.extend(self.links.iter_mut().flat_map(|link| take(&mut link.open).into_values()));
        }
        for mut job in jobs {
            let maybe = job.maybe_signed();
            self.settle(&mut job, Err(Error::closed().or_maybe_signed(maybe)));
        }
    }

    /// When the last of the requests that were sent is late.
    pub fn last_deadline(&self) -> Option<Instant> {
        self.links.iter().flat_map(|link| link.open.values()).map(|job| job.deadline).max()
    }

    fn settle(&mut self, job: &mut Job, mut outcome: Outcome) {
        if !std::mem::replace(&mut job.done, true) {
            let uncertain = job.uncertain && job.signs();
            if let Ok(Answer::Signed(_, frame)) = &mut outcome {
                *frame = take(&mut job.frame);
            }
            self.told.push((job.reply.clone(), outcome.map_err(|error| error.or_maybe_signed(uncertain))));
            self.unsettled -= 1;
            self.news |= self.unsettled == 0;
        }
    }

    /// Send what may be sent.
    fn pump(&mut self, name: &str) {
        let now = Instant::now();
        let most = if self.route.seeking { self.credits.min(1) } else { self.credits };
        while let Some(line) = self.lines.get_mut(name).filter(|line| line.taken < most) {
            let Some(mut job) = line.queue.pop_front() else { return };
            let at = pick(&self.links, name, job.refused_by.as_deref());
            if now >= job.deadline {
                let error = job.late(self.trouble.as_ref());
                self.settle(&mut job, Err(error));
            } else if let Some(at) = at {
                let link = &mut self.links[at];
                match link.stamp(&mut job, now) {
                    Err(error) => self.settle(&mut job, Err(error)),
                    Ok(slot) => {
                        line.taken += 1;
                        link.put(link.next, slot, job, false);
                        link.next += 1;
                    }
                }
            } else if job.refused_by.is_some() && pick(&self.links, name, None).is_some() {
                self.aside.push((None, job));
            } else {
                line.queue.push_front(job);
                return;
            }
        }
    }

    fn pump_all(&mut self) {
        for slot in self.lines.keys().cloned().collect::<Vec<_>>() {
            self.pump(&slot);
        }
    }

    /// A request is off a connection.
    fn release(&mut self, at: usize, request: u64) -> Option<Box<Job>> {
        let job = self.links[at].open.remove(&request)?;
        self.free(&job.slot);
        Some(job)
    }

    fn free(&mut self, name: &str) {
        if let Some(line) = self.lines.get_mut(name) {
            line.taken -= 1;
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
                Err(error) => break error,
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
        match (frame.read()?, link.is_made()) {
            (Said::Error(error), _) if frame.request == 0 => link.reason = Some(error),
            (Said::Welcome(found), false) => return self.welcome(at, found),
            (_, false) | (Said::Welcome(_), _) => return bad(format!("type {} out of turn", frame.kind)),
            (Said::Keys(keys), _) => {
                link.learn(keys);
                self.keys_changed(at);
            }
            (Said::Credit(credits), _) => {
                self.credits = credits;
                self.pump_all();
            }
            (Said::Pong(_), _) => link.useful = true,
            (Said::Goaway(left_ms, _), _) => link.leave(LEAVE + Duration::from_millis(left_ms.into())),
            (said, _) => return self.answer(at, frame.request, said),
        }
        Ok(())
    }

    fn welcome(&mut self, at: usize, found: Welcome) -> Result<(), Error> {
        let link = &mut self.links[at];
        link.names = found.slots;
        link.learn(found.keys);
        let others = |(name, slot): (&Arc<str>, &Slot)| {
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
        for (request, mut job) in take(&mut self.links[at].open) {
            let link = &mut self.links[at];
            let mut slot = link.slots.get(&job.slot);
            if !same || job.sent.is_none_or(|sent| now - sent >= link.remember) {
                // It is remembered nowhere: only a signature that comes out the same may be asked for again.
                job.uncertain = true;
                let key = job.repeats().and_then(|key| slot?.of(&key.public_key)).cloned();
                slot = slot.filter(|_| key.is_some());
                if let Some(key) = key {
                    stamp(&mut job.frame, VERSION_AT, key.version.to_le_bytes());
                    (job.key, job.sent) = (Some(key), Some(now));
                }
            }
            if let Some(number) = slot.map(|slot| slot.number) {
                link.put(request, number, job, true);
                continue;
            }
            let text = "The gateway was lost with the request, and a second signature could differ.";
            self.free(&job.slot);
            self.settle(&mut job, Err(Error::new(Code::HostLost, text).or_maybe_signed(true)));
        }
    }

    fn keys_changed(&mut self, at: usize) {
        (self.slots, self.told_at) = (self.links[at].slots.clone(), self.links[at].at);
        // Each connection is told on its own, so also where the news is none any more.
        self.call_back(|when| when.is_none());
    }

    /// Have requests that stand aside go on.
    fn call_back(&mut self, whom: impl Fn(Option<Instant>) -> bool) {
        let (due, later) = take(&mut self.aside).into_iter().partition(|(when, _)| whom(*when));
        self.aside = later;
        for (when, job) in due {
            let name = job.slot.clone();
            self.go(job, if when.is_none() { Next::Rekeyed } else { Next::Again });
            self.pump(&name);
        }
    }

    fn answer(&mut self, at: usize, request: u64, said: Said) -> Result<(), Error> {
        let link = &mut self.links[at];
        let (place, leaves) = (link.at, !link.is_ready());
        let Some(job) = link.open.get_mut(&request) else {
            return if request < link.next { Ok(()) } else { bad(format!("an answer to {request}, not asked")) };
        };
        let answer = match (said, job.frame[TYPE_AT]) {
            (Said::Error(error), _) => Err(Error { request: Some(request), ..error }),
            (Said::Done(text), MANAGE) => Ok(Answer::Done(text)),
            (Said::Signed(made), SIGN) if job.key.as_ref().is_none_or(|key| key.version == made.version) => {
                let listed = || link.slots.get(&job.slot)?.keys.iter().find(|key| key.version == made.version);
                let key = job.key.as_ref().or_else(listed).cloned();
                Ok(Answer::Signed(Signature { key, ..made }, Vec::new()))
            }
            _ => return bad(format!("an answer to {request} that is none to what was asked")),
        };
        let Some(mut job) = self.release(at, request) else { return Ok(()) };
        let next = match answer {
            Ok(answer) => {
                self.links[at].useful = true;
                self.route.seeking &= !job.signs();
                Next::Settled(Ok(answer))
            }
            Err(error) if error.code == Code::NotHolder && self.route.several() => {
                let doubts = self.route.refused(place, &error.holder);
                self.links.iter_mut().filter(|one| !doubts && one.at == place).for_each(|one| one.leave(LEAVE));
                job.moved(error, doubts)
            }
            Err(error) => job.refused(error, leaves),
        };
        let name = job.slot.clone();
        self.go(job, next);
        let link = &mut self.links[at];
        link.answered += 1;
        if link.answered >= ACK_EVERY {
            link.answered = 0;
            let lowest = link.open.first_key_value().map_or(link.next, |(number, _)| *number);
            link.out.extend(wire::about(ACK, lowest));
        }
        link.stirred |= link.open.is_empty() && !link.is_ready();
        self.pump(&name);
        Ok(())
    }

    fn go(&mut self, mut job: Box<Job>, next: Next) {
        let rekeyed = || {
            let current = self.slots.get(&job.slot).and_then(Slot::current);
            current.zip(job.refused_by.as_ref()).is_none_or(|(one, other)| one.public_key != other.public_key)
        };
        match next {
            Next::Settled(outcome) => self.settle(&mut job, outcome),
            _ if self.closing => self.settle(&mut job, Err(Error::closed())),
            Next::Later(pause) => {
                self.aside.push((Some(Instant::now() + pause), job));
                self.links.iter_mut().for_each(|link| link.stirred = true);
            }
            Next::Rekeyed if !rekeyed() => self.aside.push((None, job)),
            _ => self.lines.entry(job.slot.clone()).or_default().queue.push_front(job),
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
        self.call_back(|when| when.is_some_and(|when| when <= now));
        let link = &mut self.links[at];
        link.stirred = false;
        let mut wake = self.aside.iter().filter_map(|(when, _)| *when).min().unwrap_or(now + Duration::from_secs(3600));
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
        // Requests for signatures are kept, to be sent again. Of others, no answer is remembered.
        let lost = link.open.iter().filter(|(_, job)| !job.signs() || job.done).map(|(number, _)| *number);
        for number in lost.collect::<Vec<_>>() {
            let broke = Error::new(Code::HostLost, "The connection broke before the gateway answered.");
            self.release(at, number).iter_mut().for_each(|job| self.settle(job, Err(broke.clone())));
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
