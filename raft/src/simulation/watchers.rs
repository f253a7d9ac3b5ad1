//! Simulated watchers: cursors over a member's events, as the server's hub has them.
//!
//! An idle watcher is vouched for up to the member's position, and takes the events
//! of a batch as they come; one that is behind reads from the store. What it was
//! given must be what the ledger has: every event once, in order, none left out.

use varve_engine::mvcc::{EventLimits, LiveEvents, View};
use varve_types::{ApiError, KeyRange};

use super::history::Event as Change;
use super::world::{Event, World};

/// One watcher.
pub(super) struct Watcher {
    /// None for all keys.
    key: Option<Vec<u8>>,
    /// The member and the life of it that it is connected to.
    at: Option<(u64, u64)>,
    /// All events below were given to it.
    pub(super) next: i64,
    is_idle: bool,
    pub(super) seen: u64,
    pub(super) resumed: u64,
}

impl Watcher {
    fn range(&self) -> KeyRange<'_> {
        match &self.key {
            Some(key) => KeyRange::One(key),
            None => KeyRange::From(&[0]),
        }
    }
}

impl World {
    pub(super) fn add_watcher(&mut self, number: usize) {
        let key = (number > 0).then(|| format!("k{:02}", self.rng.below(self.plan.keys)));
        self.watchers.push(Watcher {
            key: key.map(String::into_bytes),
            at: None,
            next: 1,
            is_idle: false,
            seen: 0,
            resumed: 0,
        });
        self.agenda.after(1_000, Event::Watch(number));
    }

    /// A batch was applied: the ledger takes its events, and idle watchers theirs.
    pub(super) fn tell_watchers(&mut self, id: u64) {
        let Some(node) = self.hosts.get_mut(&id).and_then(|host| host.node.as_mut()) else {
            return;
        };
        let life = node.life;
        for (events, view) in node.take_told() {
            let (first, last, batch) = match events {
                LiveEvents::None => continue,
                LiveEvents::ReadFromStore { first, last } => (first, last, None),
                LiveEvents::Batch(batch) => {
                    let events: Vec<Change> = batch.iter().map(|e| Change::of(&e)).collect();
                    if let Err(what) = self.ledger.take(&events)
                        && !self.members_compare
                    {
                        self.violation(&format!("member {id:x}: {what}"));
                    }
                    (batch.first_revision(), batch.last_revision(), Some(events))
                }
            };
            let position = self.position_of(id);
            let has_gap = first > position;
            self.set_position(id, last + 1);
            for number in 0..self.watchers.len() {
                let watcher = &mut self.watchers[number];
                if watcher.at != Some((id, life)) || !watcher.is_idle {
                    continue;
                }
                match &batch {
                    Some(events) if !has_gap => {
                        let next = watcher.next;
                        let range = watcher.range();
                        let own =
                            |event: &&Change| event.revision >= next && range.contains(&event.key);
                        let got: Vec<Change> = events.iter().filter(own).cloned().collect();
                        self.give(number, &view, got, next.max(last + 1));
                    }
                    _ => watcher.is_idle = watcher.next > last,
                }
            }
        }
    }

    /// The revision below which all events of a member were held against its watchers.
    fn position_of(&self, id: u64) -> i64 {
        let node = self.hosts.get(&id).and_then(|host| host.node.as_ref());
        node.map_or(0, |node| node.watch_position)
    }

    fn set_position(&mut self, id: u64, position: i64) {
        if let Some(node) = self.hosts.get_mut(&id).and_then(|host| host.node.as_mut()) {
            node.watch_position = node.watch_position.max(position);
        }
    }

    /// A watcher is given events, and told that these were all below `next`.
    fn give(&mut self, number: usize, view: &View, got: Vec<Change>, next: i64) {
        let watcher = &mut self.watchers[number];
        let range = watcher.range();
        let expected: Vec<&Change> = self
            .ledger
            .from(watcher.next)
            .take_while(|event| event.revision < next)
            .filter(|event| range.contains(&event.key))
            .collect();
        let is_same = |got: &Change, expected: &Change| {
            // What was compacted is not there any more, also as a previous value.
            let is_cut = got.replaced.is_none() && expected.revision <= view.compacted();
            let same = (&got.key, &got.put, got.revision)
                == (&expected.key, &expected.put, expected.revision);
            same && (got.replaced == expected.replaced || is_cut)
        };
        let fine = got.len() == expected.len()
            && got
                .iter()
                .zip(&expected)
                .all(|(got, expected)| is_same(got, expected));
        if !fine {
            let text = format!(
                "a watcher of {:?} from revision {} to {next} got\n{got:?}\nnot\n{expected:?}",
                watcher.key, watcher.next
            );
            self.violation(&text);
        }
        watcher.next = next;
        watcher.seen += got.len() as u64;
    }

    /// A watcher looks whether it is behind, still connected, and to whom.
    pub(super) fn watch(&mut self, number: usize) {
        let delay = self.around(50_000);
        self.agenda.after(delay, Event::Watch(number));
        let is_tired = self.rng.below(200) == 0;
        let is_connected = self.watchers[number].at.is_some_and(|(id, life)| {
            let host = self.hosts.get(&id);
            host.is_some_and(|host| host.node.is_some() && host.lives == life)
        });
        if !is_connected || is_tired {
            let running = self.running();
            let Some(id) = self.pick(&running) else {
                return;
            };
            let life = self.hosts[&id].lives;
            let again = self.rng.chance(20).then(|| {
                let last = self.ledger.last() as u64;
                1 + self.rng.below(last) as i64
            });
            let watcher = &mut self.watchers[number];
            (watcher.at, watcher.is_idle) = (Some((id, life)), false);
            // Some begin anew, from any revision.
            watcher.next = again.unwrap_or(watcher.next);
            watcher.resumed += 1;
        }
        if !self.watchers[number].is_idle {
            self.read_events(number);
        }
    }

    /// Reads what a watcher has not got from the store of its member.
    pub(super) fn read_events(&mut self, number: usize) {
        let watcher = &self.watchers[number];
        let Some((id, _)) = watcher.at else {
            return;
        };
        let Some(node) = self.hosts.get(&id).and_then(|host| host.node.as_ref()) else {
            return;
        };
        let (view, position) = (node.view(), node.watch_position);
        if watcher.next > view.revision() {
            // It has seen more elsewhere than this member has applied.
            self.watchers[number].is_idle = true;
            return;
        }
        let limits = EventLimits {
            events: 1 + self.rng.below(20) as usize,
            ..EventLimits::default()
        };
        let mut got = Vec::new();
        let from = self.watchers[number].next;
        let visit = &mut |event: varve_types::EventRef<'_>| got.push(Change::of(&event));
        let range = self.watchers[number].range();
        match view.events(range, from, limits, true, visit) {
            Ok(end) => {
                self.give(number, &view, got, end.next_revision);
                let watcher = &mut self.watchers[number];
                watcher.is_idle = end.done && watcher.next >= position;
            }
            Err(error) => match error.api() {
                Some(ApiError::Compacted) if from < view.compacted() => {
                    // Its client is told, and goes on from there.
                    self.watchers[number].next = view.compacted();
                }
                _ if self.hosts.get(&id).is_some_and(|host| host.is_rotten) => {
                    self.watchers[number].at = None;
                }
                _ => self.violation(&format!("a watcher from revision {from}: {error}")),
            },
        }
    }
}
