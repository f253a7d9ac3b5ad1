//! Messages and snapshots on their way from member to member.

use raft::eraftpb::MessageType;

use super::network::Letter;
use super::node::{Progress, Stream};
use super::world::{Event, World};
use crate::io::Input;
use crate::wire;

impl World {
    pub(super) fn send(&mut self, id: u64, life: u64, to: u64, bytes: bytes::Bytes) {
        let Some(receiver) = self.hosts.get(&to) else {
            return;
        };
        let now = self.agenda.now();
        let (link, lives) = ((id, to), (life, receiver.lives));
        let mut may_repeat = true;
        if let Ok(message) = wire::decode(&bytes) {
            let checked = self.invariants.sent(id, &message);
            self.demand(checked);
            // Transports bring a message once: a proposal would be done twice.
            may_repeat = message.get_msg_type() != MessageType::MsgPropose;
        }
        let letters = self.network.send(
            &self.plan,
            &mut self.rng,
            now,
            link,
            lives,
            bytes,
            may_repeat,
        );
        if letters.is_empty() && self.network.is_cut(link) && self.rng.chance(5) {
            self.input(id, Input::Unreachable(to));
        }
        for (at, letter) in letters {
            self.agenda.at(at, Event::Arrival(letter));
        }
    }

    pub(super) fn arrival(&mut self, letter: Letter) {
        let (from, to) = letter.link;
        let are_same = self.is_alive(to, letter.lives.1)
            && self
                .hosts
                .get(&from)
                .is_none_or(|h| h.lives == letter.lives.0);
        if !are_same || !self.network.arrives(&letter) {
            return;
        }
        let knows_removal = self.hosts[&to]
            .node
            .as_ref()
            .is_some_and(|node| node.replica.membership.is_removed(from));
        match knows_removal {
            true => self.input(from, Input::Removed),
            false => self.input(
                to,
                Input::Peer {
                    from,
                    bytes: letter.bytes,
                },
            ),
        }
    }

    pub(super) fn send_snapshot(&mut self, id: u64, to: u64, message: raft::eraftpb::Message) {
        let from = self.hosts.get_mut(&id).and_then(|host| host.node.as_mut());
        let outgoing = from.and_then(|from| from.stream(to, message).ok());
        let node = |id| self.hosts.get(&id).and_then(|host| host.node.as_ref());
        let stream = outgoing
            .zip(node(id).zip(node(to)))
            .and_then(|(outgoing, (from, to))| Stream::new(from, to, outgoing));
        match stream {
            Some(stream) => {
                self.resumed += u64::from(stream.is_resumed);
                self.next_stream += 1;
                self.streams.insert(self.next_stream, stream);
                let delay = self.around(self.plan.latency_us);
                self.agenda.after(delay, Event::Stream(self.next_stream));
            }
            None => {
                let delivered = false;
                self.input(id, Input::SnapshotSent { to, delivered });
            }
        }
    }

    pub(super) fn stream(&mut self, number: u64) {
        let Some(stream) = self.streams.get(&number) else {
            return;
        };
        let (from, to) = (stream.from, stream.to);
        let is_whole = self.is_alive(from, stream.from_life) && self.is_alive(to, stream.to_life);
        let is_lost = self.network.is_cut((from, to)) || self.rng.chance(3);
        let progress = match self.streams.get_mut(&number) {
            Some(stream) if is_whole && !is_lost => stream.advance(),
            _ => Progress::Broken,
        };
        if let Progress::UnderWay = progress {
            let delay = self.around(4 * self.plan.latency_us);
            return self.agenda.after(delay, Event::Stream(number));
        }
        let Some(stream) = self.streams.remove(&number) else {
            return;
        };
        let delivered = matches!(progress, Progress::Arrived(_));
        if self.is_alive(from, stream.from_life) {
            self.input(from, Input::SnapshotSent { to, delivered });
        }
        if let Progress::Arrived(loaded) = progress {
            self.input(to, Input::SnapshotLoaded(loaded));
        }
    }

    /// Breaks the snapshots on their way to or from a member whose process ends.
    pub(super) fn break_streams(&mut self, id: u64) {
        let broken: Vec<u64> = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.from == id || stream.to == id)
            .map(|(number, _)| *number)
            .collect();
        for number in broken {
            let Some(stream) = self.streams.remove(&number) else {
                continue;
            };
            if stream.to == id && self.is_alive(stream.from, stream.from_life) {
                let delivered = false;
                self.input(stream.from, Input::SnapshotSent { to: id, delivered });
            }
        }
    }
}
