//! The addresses of a client's gateways, of which one is used at a time: which one is next, and when.

use std::collections::hash_map::RandomState;
use std::collections::BTreeSet;
use std::hash::BuildHasher;
use std::time::{Duration, Instant};

const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// The longest pause at a Unix socket that is the only address, but for a refusal, which the gateway records.
const NEAR: Duration = Duration::from_millis(50);
/// The longest pause while gateways answer, of which none holds the epoch.
const SEEKING: Duration = Duration::from_millis(500);
/// How long a gateway may take for its first word where there are others: at first; twice as long in each round.
const TRY: Duration = Duration::from_secs(1);

#[derive(Default)]
pub struct Route {
    pub addresses: Vec<String>,
    /// Where connections are made now.
    pub at: usize,
    /// How often all addresses were tried since a gateway was of use.
    pub rounds: u32,
    /// Whether a host without the epoch has refused a request, and no gateway has signed since.
    pub seeking: bool,
    longest: Duration,
    not_before: Option<Instant>,
    tried: BTreeSet<usize>,
    /// Addresses where no connection can be made.
    pub dead: BTreeSet<usize>,
}

impl Route {
    pub fn new(addresses: Vec<String>, longest: Duration) -> Self {
        Self { addresses, longest, ..Self::default() }
    }

    pub fn several(&self) -> bool {
        self.addresses.len() > 1
    }

    /// How long a gateway may take for its first word.
    pub fn try_for(&self, most: Duration) -> Duration {
        if self.several() {
            most.min(TRY * 2u32.pow(self.rounds.min(8)))
        } else {
            most
        }
    }

    /// When the next connection is made.
    pub fn when(&self, now: Instant) -> Instant {
        (now + jittered(FIRST_PAUSE)).max(self.not_before.unwrap_or(now))
    }

    /// A gateway is of use.
    pub fn begin(&mut self) {
        self.tried.clear();
        self.rounds = 0;
    }

    /// The host at an address does not hold the epoch: go on, to the holder if it is known by its name; a holder that is
    /// not sure of it is asked again. Returns whether it is that.
    pub fn refused(&mut self, at: usize, holder: &str) -> bool {
        let named = self.addresses.iter().position(|one| !holder.is_empty() && names(one).contains(&holder));
        if at == self.at && named == Some(at) {
            return true;
        }
        if at == self.at && !self.seeking {
            self.begin();
            self.seeking = true;
        }
        self.next(at, named, false, true);
        false
    }

    /// Go on to the next address that was not tried, unless another connection has, or has no trouble here (`stay`). When
    /// all were tried, the next round begins some time later. `refused`: by the gateway, in its own words.
    pub fn next(&mut self, at: usize, first: Option<usize>, stay: bool, refused: bool) {
        let now = Instant::now();
        if at != self.at || self.not_before.is_some_and(|when| now < when) {
            return;
        }
        self.tried.insert(at);
        let count = self.addresses.len();
        let others: Vec<usize> =
            if stay || count == 1 { vec![at] } else { (1..count).map(|n| (at + n) % count).collect() };
        let mut left: Vec<usize> = others.iter().copied().filter(|one| !self.tried.contains(one)).collect();
        if left.is_empty() {
            self.tried.clear();
            left = others;
            let near = !self.several() && !refused && self.addresses[0].starts_with("unix:");
            let heard = self.several() && self.dead.len() < count;
            let longest = match (near, heard) {
                (true, _) => NEAR,
                (_, true) => SEEKING,
                _ => self.longest,
            };
            let pause = longest.min(self.longest).min(FIRST_PAUSE * 2u32.pow(self.rounds.min(16)));
            self.not_before = Some(now + jittered(pause));
            self.rounds += 1;
        }
        self.at = first.filter(|one| left.contains(one)).unwrap_or(left[0]);
    }
}

/// Several that lost one gateway do not come back all at once: a random part, between half and all.
pub fn jittered(most: Duration) -> Duration {
    // std has no random numbers but the seeds of its tables.
    most.mul_f64(0.5 + (RandomState::new().hash_one(most) >> 11) as f64 / (1u64 << 54) as f64)
}

/// The names by which an address is a host's: the host, its first label, or the name of a socket's folder or file.
fn names(address: &str) -> [&str; 2] {
    if let Some(path) = address.strip_prefix("unix:") {
        let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
        return [folder.rsplit('/').next().unwrap_or(folder), file.strip_suffix(".sock").unwrap_or(file)];
    }
    let place = address.split_once(':').map_or(address, |(_, place)| place);
    let host = place.rsplit_once(':').map_or(place, |(host, _)| host).trim_matches(['[', ']']);
    [host, host.split('.').next().unwrap_or(host)]
}
