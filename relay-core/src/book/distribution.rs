//! Who gets which book next: a machine without I/O and clock.
//!
//! ```text
//!            lacks                    next                 finished: delivered
//!   at rest ───────▶ in the queue ──────────▶ under way ──────────────────────▶ at rest, or in the queue for the next
//!                         ▲                       │ finished: failed
//!                         └──── the time comes ── waits
//! ```
//!
//! What each device has is kept by the store; this machine is told of it: that a device came ([`Distribution::online`];
//! the store is then asked what it lacks), and that it lacks a version ([`Distribution::lacks`]), be it because it came
//! or because there is a new one. It remembers, of devices that are online, what they got since they came, so that
//! being told something twice, or late, delivers nothing twice. A device that is away costs nothing.
//!
//! One delivery at a time goes to a device, a bounded number to all; whoever lacks something longest comes first. A
//! delivery that fails is tried again, later each time; coming back counts as a new beginning. Devices that failed once
//! have a quarter of the places: however many do not answer, the others do not wait for them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use foldhash::quality::RandomState;

use super::{BookKey, Version};
use crate::ids::DeviceId;

/// How books are handed out.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DistributionConfig {
    /// Deliveries at once (64). Each may hold a document of [`MAX_SIZE`](super::MAX_SIZE), which those of the same
    /// version share.
    pub at_once: usize,
    /// How long after its first failure a delivery is tried again (5 s); twice as long after each further one.
    pub first_retry: Duration,
    /// The longest that it grows to (5 min).
    pub last_retry: Duration,
}

impl Default for DistributionConfig {
    fn default() -> Self {
        Self { at_once: 64, first_retry: Duration::from_secs(5), last_retry: Duration::from_secs(300) }
    }
}

/// What is to be delivered now.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Delivery {
    /// To whom.
    pub device: DeviceId,
    /// Which book.
    pub book: BookKey,
    /// The version that the device is known to lack. A newer one may be delivered in its stead.
    pub version: Version,
}

/// How a delivery ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The device said that it has this version.
    Delivered(Version),
    /// It did not: to be tried again.
    Failed,
    /// It is not to have it, or not to be had: not tried again before there is a newer version or the device comes
    /// anew.
    Refused,
}

/// Hands out books. See the [module](super).
#[derive(Debug)]
pub struct Distribution {
    config: DistributionConfig,
    devices: HashMap<DeviceId, Device, RandomState>,
    /// Devices that lack something and can have it now, by when they came to.
    queue: BTreeMap<u64, DeviceId>,
    /// The same, of those whose last delivery failed.
    again: BTreeMap<u64, DeviceId>,
    next_place: u64,
    /// When devices whose delivery failed get another.
    retries: BTreeSet<(Instant, DeviceId)>,
    under_way: usize,
    /// Of those, the ones to devices whose last one failed.
    again_under_way: usize,
}

#[derive(Debug, Default)]
struct Device {
    /// False while a delivery is still under way to one that has gone.
    online: bool,
    books: BTreeMap<BookKey, Holding>,
    state: State,
    failures: u32,
}

/// What is known of a device's copy of a book.
#[derive(Debug, Default)]
struct Holding {
    has: Option<Version>,
    lacks: Option<Version>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Rests,
    /// At this place.
    Queued(u64),
    /// True if the one before it failed.
    UnderWay(BookKey, Version, bool),
    Waits(Instant),
}

impl Device {
    fn lacks_any(&self) -> bool {
        self.books.values().any(|copy| copy.lacks.is_some())
    }
}

impl Distribution {
    /// One that knows of nobody.
    pub fn new(config: DistributionConfig) -> Self {
        Self {
            config,
            devices: HashMap::default(),
            queue: BTreeMap::new(),
            again: BTreeMap::new(),
            next_place: 0,
            retries: BTreeSet::new(),
            under_way: 0,
            again_under_way: 0,
        }
    }

    /// `device` can be reached from now on. If it already could, it came anew: what failed is tried at once.
    pub fn online(&mut self, device: &DeviceId) {
        let entry = self.devices.entry(device.clone()).or_default();
        entry.online = true;
        entry.failures = 0;
        if let State::Waits(until) = entry.state {
            self.retries.remove(&(until, device.clone()));
            entry.state = State::Rests;
        }
        self.settle(device);
    }

    /// `device` can no longer be reached. A delivery under way may still end well.
    pub fn offline(&mut self, device: &DeviceId) {
        let Some(entry) = self.devices.get_mut(device) else { return };
        match entry.state {
            State::UnderWay(..) => {
                entry.online = false;
                return;
            }
            State::Waits(until) => {
                self.retries.remove(&(until, device.clone()));
            }
            State::Queued(place) => {
                self.queue.remove(&place);
                self.again.remove(&place);
            }
            State::Rests => {}
        }
        self.devices.remove(device);
    }

    /// `device` lacks `version`, which is the current one. Passed over if it is not online.
    pub fn lacks(&mut self, device: &DeviceId, book: &BookKey, version: Version) {
        let Some(entry) = self.devices.get_mut(device).filter(|entry| entry.online) else { return };
        let copy = entry.books.entry(book.clone()).or_default();
        if copy.has < Some(version) && copy.lacks < Some(version) {
            copy.lacks = Some(version);
            self.settle(device);
        }
    }

    /// `device` has `version`, by its own word: it made it.
    pub fn has(&mut self, device: &DeviceId, book: &BookKey, version: Version) {
        let Some(entry) = self.devices.get_mut(device) else { return };
        entry.books.entry(book.clone()).or_default().got(version);
        // Whoever is in the queue for nothing now is passed over there.
    }

    /// The delivery under way to `device` has ended.
    pub fn finished(&mut self, now: Instant, device: &DeviceId, outcome: Outcome) {
        let Some(entry) = self.devices.get_mut(device) else { return };
        let (book, version, again) = match std::mem::take(&mut entry.state) {
            State::UnderWay(book, version, again) => (book, version, again),
            other => {
                entry.state = other;
                return;
            }
        };
        self.under_way -= 1;
        self.again_under_way -= usize::from(again);
        if !entry.online {
            self.devices.remove(device);
            return;
        }
        let copy = entry.books.entry(book).or_default();
        match outcome {
            Outcome::Delivered(version) => {
                copy.got(version);
                entry.failures = 0;
            }
            Outcome::Refused => copy.lacks = copy.lacks.filter(|lacks| *lacks > version),
            Outcome::Failed => {
                let doubled = 2u32.saturating_pow(entry.failures);
                let wait = self.config.first_retry.saturating_mul(doubled).min(self.config.last_retry);
                entry.failures = entry.failures.saturating_add(1);
                if entry.lacks_any() {
                    let until = now + wait;
                    entry.state = State::Waits(until);
                    self.retries.insert((until, device.clone()));
                }
                return;
            }
        }
        self.settle(device);
    }

    /// Lets those have their turn again whose time has come.
    pub fn timeout(&mut self, now: Instant) {
        while self.wake_at().is_some_and(|at| at <= now)
            && let Some((_, device)) = self.retries.pop_first()
        {
            if let Some(entry) = self.devices.get_mut(&device) {
                entry.state = State::Rests;
            }
            self.settle(&device);
        }
    }

    /// When [`Distribution::timeout`] is to be called next.
    pub fn wake_at(&self) -> Option<Instant> {
        self.retries.first().map(|(at, _)| *at)
    }

    /// The next delivery, which is under way from now on; `None` as long as there is none, or there are enough. To be
    /// asked after every other call.
    pub fn next_delivery(&mut self) -> Option<Delivery> {
        while self.under_way < self.config.at_once {
            let device = self.next_device()?;
            let Some(entry) = self.devices.get_mut(&device) else { continue };
            entry.state = State::Rests;
            let lacking =
                entry.books.iter().find_map(|(book, copy)| copy.lacks.map(|lacks| (book.clone(), lacks)));
            let Some((book, version)) = lacking else { continue };
            let again = entry.failures > 0;
            entry.state = State::UnderWay(book.clone(), version, again);
            self.under_way += 1;
            self.again_under_way += usize::from(again);
            return Some(Delivery { device, book, version });
        }
        None
    }

    fn next_device(&mut self) -> Option<DeviceId> {
        let room = self.again_under_way < (self.config.at_once / 4).max(1);
        let again = self.again.first_key_value().filter(|_| room).map(|(place, _)| *place);
        let first = self.queue.first_key_value().map(|(place, _)| *place);
        let queue = match (first, again) {
            (Some(first), Some(again)) if again < first => &mut self.again,
            (None, Some(_)) => &mut self.again,
            _ => &mut self.queue,
        };
        queue.pop_first().map(|(_, device)| device)
    }

    /// Whether nothing is under way or in the queue. Something may still wait to be tried again.
    pub fn is_idle(&self) -> bool {
        self.under_way == 0 && self.queue.is_empty() && self.again.is_empty()
    }

    /// Deliveries under way.
    pub const fn under_way(&self) -> usize {
        self.under_way
    }

    /// The devices that it takes for online, and those that something is still under way to.
    pub fn devices(&self) -> Vec<DeviceId> {
        self.devices.keys().cloned().collect()
    }

    /// Whether it takes `device` for online.
    pub fn knows(&self, device: &DeviceId) -> bool {
        self.devices.get(device).is_some_and(|entry| entry.online)
    }

    /// Queues `device` if it rests and lacks something.
    fn settle(&mut self, device: &DeviceId) {
        let Some(entry) = self.devices.get_mut(device) else { return };
        if matches!(entry.state, State::Rests) && entry.lacks_any() {
            entry.state = State::Queued(self.next_place);
            let queue = if entry.failures > 0 { &mut self.again } else { &mut self.queue };
            queue.insert(self.next_place, device.clone());
            self.next_place += 1;
        }
    }
}

impl Holding {
    fn got(&mut self, version: Version) {
        self.has = self.has.max(Some(version));
        self.lacks = self.lacks.filter(|lacks| *lacks > version);
    }
}
