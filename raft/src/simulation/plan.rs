//! What kind of run a seed gives.

use varve_engine::disk::sim::Rng;

use super::agenda::Micros;

/// What a run is to look into. Chosen by the seed, or by who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Nothing fails.
    Fair,
    /// Messages are lost, late, duplicated; partitions; slow links; pauses.
    Network,
    /// Crashes, power losses, slow and failing disks.
    Disks,
    /// All of both.
    Everything,
    /// All of both, while members come and go.
    Membership,
    /// Everything, and stored bits change.
    BitRot,
    /// One member alone.
    Single,
    /// Slow disks, and nothing else: no reason for another leader.
    SlowDisks,
    /// One disk at a time hangs for seconds, mostly the leader's, and nothing else.
    StuckDisks,
}

impl Profile {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Everything,
        Self::Membership,
        Self::Disks,
        Self::Network,
        Self::BitRot,
        Self::Fair,
        Self::Single,
        Self::SlowDisks,
        Self::StuckDisks,
    ];

    /// That of a seed: the rough ones twice as often.
    pub(super) fn of(seed: u64) -> Self {
        const OFTEN: [Profile; 13] = [
            Profile::Everything,
            Profile::Membership,
            Profile::Disks,
            Profile::Network,
            Profile::Everything,
            Profile::BitRot,
            Profile::Membership,
            Profile::Fair,
            Profile::Everything,
            Profile::Single,
            Profile::Membership,
            Profile::SlowDisks,
            Profile::StuckDisks,
        ];
        OFTEN[(seed % OFTEN.len() as u64) as usize]
    }
}

/// What a run is like.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) profile: Profile,
    pub(super) members: usize,
    pub(super) heartbeat_ticks: u64,
    pub(super) tick_us: Micros,
    /// How far a member's clock may be off, in percent.
    pub(super) drift_percent: u64,
    pub(super) clients: usize,
    pub(super) keys: u64,
    pub(super) watchers: usize,
    /// Mean time between two operations of a client.
    pub(super) think_us: Micros,
    pub(super) latency_us: Micros,
    pub(super) loss_permille: u64,
    pub(super) duplicate_permille: u64,
    pub(super) sync_us: Micros,
    pub(super) apply_us: Micros,
    pub(super) checkpoint_us: Micros,
    /// Mean time between two faults; 0 for none.
    pub(super) fault_us: Micros,
    /// Mean time between two changes of the membership; 0 for none.
    pub(super) change_us: Micros,
    pub(super) catchup_entries: u64,
    pub(super) strict: bool,
    pub(super) max_apply_bytes: usize,
    pub(super) log_cache_bytes: usize,
    pub(super) segment_bytes: u64,
    /// Members out of a hundred that run on the B+tree; the others in memory.
    pub(super) btree_percent: u64,
}

impl Plan {
    pub(super) fn new(profile: Profile, rng: &mut Rng) -> Self {
        let mut pick = |choices: &[u64]| choices[rng.below(choices.len() as u64) as usize];
        let heartbeat_ticks = pick(&[1, 2, 5]);
        let lossy = matches!(
            profile,
            Profile::Network | Profile::Everything | Profile::Membership | Profile::BitRot
        );
        let members = match profile {
            Profile::Single => 1,
            Profile::Membership => pick(&[1, 3, 3, 5]),
            _ => pick(&[3, 3, 3, 5]),
        };
        Self {
            profile,
            members: members as usize,
            heartbeat_ticks,
            tick_us: 100_000 / heartbeat_ticks,
            drift_percent: pick(&[0, 2, 10]),
            clients: pick(&[2, 4, 6, 8]) as usize,
            keys: pick(&[1, 3, 6, 20]),
            watchers: pick(&[1, 3]) as usize,
            think_us: pick(&[5_000, 30_000, 100_000]),
            latency_us: pick(&[200, 1_000, 8_000]),
            loss_permille: if lossy { pick(&[0, 5, 30]) } else { 0 },
            duplicate_permille: if lossy { pick(&[0, 10, 50]) } else { 0 },
            sync_us: pick(&[100, 1_000, 10_000]),
            apply_us: pick(&[50, 500, 20_000]),
            checkpoint_us: pick(&[200_000, 1_000_000, 5_000_000]),
            fault_us: match profile {
                Profile::Fair => 0,
                _ => pick(&[300_000, 800_000, 2_000_000]),
            },
            change_us: match profile {
                Profile::Membership => pick(&[300_000, 1_000_000]),
                _ => 0,
            },
            catchup_entries: pick(&[3, 50, 5_000]),
            strict: pick(&[0, 1, 1]) == 1,
            max_apply_bytes: pick(&[2 << 10, 1 << 20]) as usize,
            log_cache_bytes: pick(&[4 << 10, 1 << 20]) as usize,
            segment_bytes: pick(&[64 << 10, 256 << 10]),
            btree_percent: pick(&[0, 50, 100]),
        }
    }
}
