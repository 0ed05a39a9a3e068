use std::{
    collections::{BTreeMap as Map, BTreeSet as Set},
    time::{Duration, Instant},
};

use super::*;
use crate::ids::DeviceId;

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn device(n: usize) -> DeviceId {
    DeviceId::new(&format!("d{n:04}")).unwrap()
}

fn key(book: usize) -> BookKey {
    BookKey::new(AccountId::new("acme").unwrap(), BookId::new(&format!("b{book}")).unwrap())
}

fn version(number: u64) -> Version {
    Version::new(number).unwrap()
}

/// What happens of itself, in virtual time.
enum Event {
    Ends(DeviceId, BookKey, Version, bool),
    Wake,
}

/// A relay around the machine: a store that knows what each device has, devices that take their time, and a clock.
struct Sim {
    machine: Distribution,
    now: Instant,
    events: Map<(Instant, u64), Event>,
    next: u64,
    current: Map<BookKey, Version>,
    holds: Map<(DeviceId, BookKey), Version>,
    members: Set<DeviceId>,
    online: Set<DeviceId>,
    /// Every delivery that a device confirmed.
    delivered: Vec<(DeviceId, BookKey, Version)>,
    most: usize,
    /// How many deliveries fail before one succeeds, by device.
    failing: Map<DeviceId, u32>,
}

impl Sim {
    fn new(devices: usize, config: DistributionConfig) -> Self {
        Self {
            machine: Distribution::new(config),
            now: now(),
            events: Map::new(),
            next: 0,
            current: Map::new(),
            holds: Map::new(),
            members: (0..devices).map(device).collect(),
            online: Set::new(),
            delivered: Vec::new(),
            most: 0,
            failing: Map::new(),
        }
    }

    fn at(&mut self, after: Duration, event: Event) {
        self.events.insert((self.now + after, self.next), event);
        self.next += 1;
    }

    fn behind(&self, device: &DeviceId, book: &BookKey) -> Option<Version> {
        let current = *self.current.get(book)?;
        let has = self.holds.get(&(device.clone(), book.clone()));
        (self.members.contains(device) && has != Some(&current)).then_some(current)
    }

    fn change(&mut self, book: &BookKey, by: Option<&DeviceId>) -> Version {
        let next = version(self.current.get(book).map_or(1, |version| version.number() + 1));
        self.current.insert(book.clone(), next);
        if let Some(by) = by {
            self.holds.insert((by.clone(), book.clone()), next);
            self.machine.has(by, book, next);
        }
        for device in self.members.clone() {
            if let Some(version) = self.behind(&device, book) {
                self.machine.lacks(&device, book, version);
            }
        }
        self.pump();
        next
    }

    fn comes(&mut self, device: &DeviceId) {
        self.online.insert(device.clone());
        self.machine.online(device);
        for book in self.current.keys().cloned().collect::<Vec<_>>() {
            if let Some(version) = self.behind(device, &book) {
                self.machine.lacks(device, &book, version);
            }
        }
        self.pump();
    }

    fn goes(&mut self, device: &DeviceId) {
        self.online.remove(device);
        self.machine.offline(device);
        self.pump();
    }

    fn pump(&mut self) {
        while let Some(Delivery { device, book, .. }) = self.machine.next_delivery() {
            // As the relay does: what is delivered is what is current at this moment.
            let version = self.current[&book];
            // Some take longer than others.
            let takes = Duration::from_millis(10 + self.next * 7919 % 90);
            let fails = self.failing.get_mut(&device).is_some_and(|left| {
                *left = left.saturating_sub(1);
                *left > 0
            });
            self.at(takes, Event::Ends(device, book, version, fails));
        }
        self.most = self.most.max(self.machine.under_way());
        if let Some(at) = self.machine.wake_at() {
            let wait = at.saturating_duration_since(self.now);
            self.at(wait, Event::Wake);
        }
    }

    /// Lets the next thing happen; false if nothing is to.
    fn step(&mut self) -> bool {
        let Some(((at, _), event)) = self.events.pop_first() else { return false };
        self.now = at;
        match event {
            Event::Wake => self.machine.timeout(self.now),
            Event::Ends(device, book, version, fails) => {
                let outcome = if fails || !self.online.contains(&device) {
                    Outcome::Failed
                } else {
                    self.holds.insert((device.clone(), book.clone()), version);
                    self.delivered.push((device.clone(), book, version));
                    Outcome::Delivered(version)
                };
                self.machine.finished(self.now, &device, outcome);
            }
        }
        self.pump();
        true
    }

    fn settle(&mut self) {
        while self.step() {}
    }

    fn count(&self, device: &DeviceId, book: &BookKey, version: Version) -> usize {
        let wanted = (device.clone(), book.clone(), version);
        self.delivered.iter().filter(|delivered| **delivered == wanted).count()
    }
}

#[test]
fn a5_a_thousand_devices_get_a_new_book_once_each_the_reporter_not_at_all() {
    let config = DistributionConfig::default();
    let at_once = config.at_once;
    let mut sim = Sim::new(1_000, config);
    let (book, reporter) = (key(0), device(17));
    // Every fifth is away.
    let (away, here): (Vec<_>, Vec<_>) = (0..1_000).map(device).enumerate().partition(|(n, _)| n % 5 == 0);
    here.iter().for_each(|(_, device)| sim.comes(device));
    let version = sim.change(&book, Some(&reporter));
    sim.settle();
    for (_, device) in &here {
        assert_eq!(sim.count(device, &book, version), usize::from(*device != reporter), "{device}");
    }
    assert!(away.iter().all(|(_, device)| sim.count(device, &book, version) == 0));
    assert_eq!(sim.most, at_once, "deliveries at once");

    // Those who were away get it when they come; who has it gets nothing by coming again.
    for (_, device) in away.iter().chain(&here) {
        sim.comes(device);
    }
    sim.settle();
    assert_eq!(sim.delivered.len(), 999);
    assert!(away.iter().all(|(_, device)| sim.count(device, &book, version) == 1));
    assert_eq!(sim.count(&reporter, &book, version), 0);
}

#[test]
fn a5_a_reporter_whose_edit_was_merged_gets_the_book_too() {
    let mut sim = Sim::new(3, DistributionConfig::default());
    (0..3).for_each(|n| sim.comes(&device(n)));
    sim.change(&key(0), Some(&device(0)));
    sim.settle();
    // Merged: nobody is said to have it.
    let version = sim.change(&key(0), None);
    sim.settle();
    assert!((0..3).all(|n| sim.count(&device(n), &key(0), version) == 1));
}

#[test]
fn a5_a_device_that_is_told_of_several_changes_gets_the_last_alone() {
    let mut sim = Sim::new(1, DistributionConfig::default());
    sim.comes(&device(0));
    // The first is under way when the others are made.
    let versions: Vec<_> = (0..5).map(|_| sim.change(&key(0), None)).collect();
    sim.settle();
    let got: Vec<_> = sim.delivered.iter().map(|(_, _, version)| *version).collect();
    assert_eq!(got, [versions[0], versions[4]]);
}

#[test]
fn a5_several_books_go_to_a_device_one_after_the_other() {
    let mut sim = Sim::new(1, DistributionConfig::default());
    sim.comes(&device(0));
    let versions: Vec<_> = (0..5).map(|book| (key(book), sim.change(&key(book), None))).collect();
    assert_eq!(sim.machine.under_way(), 1);
    sim.settle();
    assert_eq!(sim.most, 1);
    assert!(versions.iter().all(|(book, version)| sim.count(&device(0), book, *version) == 1));
}

#[test]
fn a5_a_delivery_that_fails_is_tried_again_later_each_time() {
    let mut sim = Sim::new(1, DistributionConfig::default());
    sim.failing.insert(device(0), 10);
    sim.comes(&device(0));
    let start = sim.now;
    let version = sim.change(&key(0), None);
    sim.settle();
    assert_eq!(sim.count(&device(0), &key(0), version), 1);
    // 5, 10, 20, 40, 80, 160, 300, 300, 300 seconds.
    let took = sim.now - start;
    assert!((1215..1217).contains(&took.as_secs()), "{took:?}");

    // Coming anew does not wait, and begins the waiting anew.
    sim.failing.insert(device(0), 3);
    sim.change(&key(0), None);
    sim.step();
    assert!(sim.machine.wake_at().is_some());
    let before = sim.now;
    sim.comes(&device(0));
    assert_eq!((sim.machine.under_way(), sim.machine.wake_at()), (1, None));
    while sim.delivered.len() < 2 {
        assert!(sim.step());
    }
    assert!(sim.now - before < Duration::from_secs(6), "{:?}", sim.now - before);
}

#[test]
fn a5_what_a_device_refuses_waits_for_the_next_version_and_holds_up_nothing_else() {
    let (mut machine, now) = (Distribution::new(DistributionConfig::default()), now());
    machine.online(&device(0));
    machine.lacks(&device(0), &key(0), version(1));
    machine.lacks(&device(0), &key(1), version(1));
    assert_eq!(machine.next_delivery().unwrap().book, key(0));
    machine.finished(now, &device(0), Outcome::Refused);
    assert_eq!(machine.next_delivery().unwrap().book, key(1));
    machine.finished(now, &device(0), Outcome::Delivered(version(1)));
    assert_eq!((machine.next_delivery(), machine.wake_at()), (None, None));
    machine.lacks(&device(0), &key(0), version(2));
    assert_eq!(machine.next_delivery().unwrap().version, version(2));
}

#[test]
fn a5_news_that_come_late_or_twice_deliver_nothing_twice() {
    let (mut machine, now) = (Distribution::new(DistributionConfig::default()), now());
    let (device, book) = (device(0), key(0));
    machine.lacks(&device, &book, version(1));
    assert_eq!(machine.next_delivery(), None, "it is away");
    machine.online(&device);
    for _ in 0..3 {
        machine.lacks(&device, &book, version(2));
        machine.lacks(&device, &book, version(1));
    }
    assert_eq!(machine.next_delivery().unwrap().version, version(2));
    machine.lacks(&device, &book, version(2));
    assert_eq!(machine.next_delivery(), None, "one at a time");
    // A newer one went in its stead.
    machine.finished(now, &device, Outcome::Delivered(version(3)));
    machine.lacks(&device, &book, version(2));
    machine.lacks(&device, &book, version(3));
    assert_eq!(machine.next_delivery(), None);
    // It made the next itself, while it was in the queue for an older one.
    machine.lacks(&device, &book, version(4));
    machine.has(&device, &book, version(5));
    machine.has(&device, &book, version(4));
    assert_eq!(machine.next_delivery(), None);
    machine.finished(now, &device, Outcome::Failed);
    assert_eq!((machine.under_way(), machine.wake_at()), (0, None));
}

#[test]
fn t37_devices_that_do_not_answer_leave_places_for_those_that_do() {
    let config = DistributionConfig { at_once: 8, ..DistributionConfig::default() };
    let (mut machine, now) = (Distribution::new(config), now());
    let lacks = |machine: &mut Distribution, n: usize| {
        machine.online(&device(n));
        machine.lacks(&device(n), &key(0), version(1));
    };
    (0..20).for_each(|n| lacks(&mut machine, n));
    // None of them answers, each once.
    for _ in 0..20 {
        let silent = machine.next_delivery().unwrap().device;
        machine.finished(now, &silent, Outcome::Failed);
    }
    machine.timeout(now + Duration::from_secs(5));
    assert_eq!(std::iter::from_fn(|| machine.next_delivery()).count(), 2, "a quarter");
    (100..120).for_each(|n| lacks(&mut machine, n));
    let others: Vec<_> = std::iter::from_fn(|| machine.next_delivery()).collect();
    assert_eq!(others.len(), 6);
    assert!(others.iter().all(|delivery| delivery.device >= device(100)));
    // They have their turn again, too: whoever came first is first.
    machine.finished(now, &device(0), Outcome::Delivered(version(1)));
    assert_eq!(machine.next_delivery().unwrap().device, device(2));
}

#[test]
fn i9_a_device_that_went_costs_nothing() {
    let (mut machine, now) = (Distribution::new(DistributionConfig::default()), now());
    for n in 0..4 {
        machine.online(&device(n));
        machine.lacks(&device(n), &key(0), version(1));
    }
    for _ in 0..3 {
        machine.next_delivery().unwrap();
    }
    machine.finished(now, &device(0), Outcome::Failed);
    // One waits, two are under way, one is in the queue.
    (0..4).for_each(|n| machine.offline(&device(n)));
    assert_eq!((machine.devices().len(), machine.under_way(), machine.wake_at()), (2, 2, None));
    machine.finished(now, &device(1), Outcome::Delivered(version(1)));
    // It came again before its delivery ended.
    machine.online(&device(2));
    machine.lacks(&device(2), &key(0), version(1));
    machine.finished(now, &device(2), Outcome::Failed);
    machine.offline(&device(2));
    assert_eq!((machine.devices().len(), machine.under_way(), machine.wake_at()), (0, 0, None));
    assert_eq!(machine.next_delivery(), None);
}

proptest! {
    #[test]
    fn a5_whoever_comes_and_goes_in_the_end_all_have_the_last_version_and_none_got_it_twice(
        steps in prop::collection::vec((0..6_usize, 0..12_usize, 0..3_usize), 1..120),
        at_once in 1..4_usize,
    ) {
        let mut sim = Sim::new(12, DistributionConfig { at_once, ..DistributionConfig::default() });
        for (action, n, book) in steps {
            match action {
                0 => sim.comes(&device(n)),
                1 => sim.goes(&device(n)),
                2 => drop(sim.change(&key(book), None)),
                3 => {
                    // A device that is up to date reports.
                    let has = sim.behind(&device(n), &key(book)).is_none();
                    sim.change(&key(book), has.then(|| device(n)).as_ref());
                }
                4 => drop(sim.failing.insert(device(n), 3)),
                _ => drop((0..=n).all(|_| sim.step())),
            }
            prop_assert!(sim.machine.under_way() <= at_once);
        }
        (0..12).for_each(|n| sim.comes(&device(n)));
        sim.settle();
        prop_assert_eq!((sim.machine.under_way(), sim.machine.wake_at()), (0, None));
        let mut seen = Set::new();
        for delivered in &sim.delivered {
            prop_assert!(seen.insert(delivered.clone()), "{:?} twice", delivered);
        }
        for (book, current) in &sim.current {
            for n in 0..12 {
                prop_assert_eq!(sim.holds.get(&(device(n), book.clone())), Some(current));
            }
        }
    }
}
