//! The simulated network between members.
//!
//! A connection keeps the order of its messages, loses some, sends some twice in a
//! row, and may break with all that is under way. Different connections are late by
//! different times, so that messages of different members overtake each other.

use std::collections::BTreeMap;

use bytes::Bytes;
use varve_engine::disk::sim::Rng;

use super::agenda::Micros;
use super::plan::Plan;

/// From one member to another.
pub(super) type Link = (u64, u64);

#[derive(Default)]
struct Connection {
    /// When the message that was sent last arrives.
    last_arrival: Micros,
    /// How many times it broke.
    broken: u64,
    /// How many times longer than usual messages take.
    factor: u64,
}

#[derive(Default)]
pub(super) struct Network {
    connections: BTreeMap<Link, Connection>,
    /// How many partitions cut each link.
    cut: BTreeMap<Link, u32>,
    pub(super) sent: u64,
    pub(super) lost: u64,
    pub(super) duplicated: u64,
}

/// A message on its way.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) link: Link,
    /// Lives of sender and receiver when it was sent.
    pub(super) lives: (u64, u64),
    broken: u64,
    pub(super) bytes: Bytes,
}

impl Network {
    /// Sends a message; when it arrives, once or twice, or not at all.
    #[allow(clippy::too_many_arguments)] // named at the one place that calls it
    pub(super) fn send(
        &mut self,
        plan: &Plan,
        rng: &mut Rng,
        now: Micros,
        link: Link,
        lives: (u64, u64),
        bytes: Bytes,
        may_repeat: bool,
    ) -> Vec<(Micros, Letter)> {
        self.sent += 1;
        if self.is_cut(link) || rng.below(1000) < plan.loss_permille {
            self.lost += 1;
            return Vec::new();
        }
        let connection = self.connections.entry(link).or_default();
        let mean = plan.latency_us * connection.factor.max(1);
        // Now and then one is much later than the others.
        let late = if rng.below(50) == 0 { 20 } else { 1 };
        let arrival = now + mean / 2 + rng.below(mean * late + 1);
        connection.last_arrival = (connection.last_arrival + 1).max(arrival);
        let letter = |bytes: Bytes, broken| Letter {
            link,
            lives,
            broken,
            bytes,
        };
        let (at, broken) = (connection.last_arrival, connection.broken);
        let mut letters = vec![(at, letter(bytes.clone(), broken))];
        if rng.below(1000) < plan.duplicate_permille && may_repeat {
            self.duplicated += 1;
            connection.last_arrival += 1;
            letters.push((connection.last_arrival, letter(bytes, broken)));
        }
        letters
    }

    /// Whether a message that is due arrives.
    pub(super) fn arrives(&mut self, letter: &Letter) -> bool {
        let connection = self.connections.entry(letter.link).or_default();
        let arrives = connection.broken == letter.broken && !self.is_cut(letter.link);
        if !arrives {
            self.lost += 1;
        }
        arrives
    }

    pub(super) fn is_cut(&self, link: Link) -> bool {
        self.cut.get(&link).is_some_and(|count| *count > 0)
    }

    pub(super) fn cut(&mut self, links: &[Link]) {
        for link in links {
            *self.cut.entry(*link).or_default() += 1;
        }
    }

    pub(super) fn mend(&mut self, links: &[Link]) {
        for link in links {
            if let Some(count) = self.cut.get_mut(link) {
                *count = count.saturating_sub(1);
            }
        }
    }

    /// Breaks a connection: what is under way is lost.
    pub(super) fn break_connection(&mut self, link: Link) {
        self.connections.entry(link).or_default().broken += 1;
    }

    /// Makes a connection so many times slower than others.
    pub(super) fn slow(&mut self, link: Link, factor: u64) {
        self.connections.entry(link).or_default().factor = factor;
    }

    /// Ends all partitions; all connections are as fast as others.
    pub(super) fn heal(&mut self) {
        self.cut.clear();
        for connection in self.connections.values_mut() {
            connection.factor = 1;
        }
    }
}
