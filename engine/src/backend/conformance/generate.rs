//! Operations from a seed.

use super::super::Direction;
use super::{Operation, Range};

/// A generator of pseudo-random numbers: SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The generator that `seed` starts.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.number() % limit.max(1) as u64) as usize
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// What keys look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyShape {
    /// Few bytes, many of them equal, the empty key among them.
    Short,
    /// A path-like prefix and a number.
    Path,
    /// Up to the engine's limit, long shared prefixes.
    Long {
        /// The limit.
        max: usize,
    },
    /// Any of these.
    Mixed {
        /// The limit of long ones.
        max: usize,
    },
}

impl KeyShape {
    fn key(self, random: &mut Random, keys: usize) -> Vec<u8> {
        let number = random.below(keys);
        match self {
            KeyShape::Short => {
                let digits = [0_u8, 1, 97, 255];
                let length = number % 6;
                (0..length)
                    .map(|place| digits[number >> (2 * place) & 3])
                    .collect()
            }
            KeyShape::Path => {
                let kinds = [
                    "pods/default",
                    "leases/kube-system",
                    "configmaps/a",
                    "events",
                ];
                format!("/registry/{}/{number:08}", kinds[number % 4]).into_bytes()
            }
            KeyShape::Long { max } => {
                let tail = format!("{number}");
                let fill = [b'x', b'y'][number % 2];
                let length = [max / 10, max / 2, max][number % 3].saturating_sub(tail.len());
                let mut key = vec![fill; length];
                key.extend_from_slice(tail.as_bytes());
                key.truncate(max);
                key
            }
            KeyShape::Mixed { max } => {
                let shapes = [
                    KeyShape::Short,
                    KeyShape::Path,
                    KeyShape::Path,
                    KeyShape::Long { max },
                ];
                shapes[random.below(4)].key(random, keys)
            }
        }
    }
}

fn value(random: &mut Random) -> Vec<u8> {
    let lengths = [
        0, 1, 30, 100, 250, 250, 600, 1024, 1536, 2000, 2020, 2030, 4064, 4065, 9000, 70_000,
    ];
    // Mostly short, so that trees get high without much data.
    let length = if random.chance(80) {
        lengths[random.below(6)]
    } else {
        lengths[random.below(lengths.len())]
    };
    let start = random.number();
    (0..length)
        .map(|at| (start >> (8 * (at % 7))) as u8 ^ at as u8)
        .collect()
}

fn range(random: &mut Random, shape: KeyShape, keys: usize) -> Range {
    let side = |random: &mut Random| match random.below(5) {
        0 => None,
        pick => Some((shape.key(random, keys), pick % 2 == 0)),
    };
    let (start, end) = (side(random), side(random));
    match (&start, &end) {
        // Inverted bounds are legal, but seldom worth a step.
        (Some((low, _)), Some((high, _))) if low > high && random.chance(90) => Range {
            start: end,
            end: start,
        },
        _ => Range { start, end },
    }
}

/// `count` operations from a seed, on keys of `shape` of which there are about
/// `keys`. `reopens` says whether the store is closed and opened in between.
pub fn operations(
    seed: u64,
    count: usize,
    shape: KeyShape,
    keys: usize,
    reopens: bool,
) -> Vec<Operation> {
    let mut random = Random::new(seed);
    // Phases of growing and of shrinking make trees rise and fall.
    let mut deletes = 15;
    let mut operations = Vec::with_capacity(count);
    while operations.len() < count {
        if random.chance(1) {
            deletes = [5, 15, 60][random.below(3)];
        }
        operations.push(operation(&mut random, shape, keys, deletes, reopens));
    }
    operations
}

fn operation(
    random: &mut Random,
    shape: KeyShape,
    keys: usize,
    deletes: usize,
    reopens: bool,
) -> Operation {
    let tree = [1, 1, 1, 2, 3, 7][random.below(6)];
    if random.chance(deletes) {
        return if random.chance(4) {
            Operation::DeleteRange {
                tree,
                range: range(random, shape, keys),
            }
        } else {
            Operation::Delete {
                tree,
                key: shape.key(random, keys),
            }
        };
    }
    let direction = [Direction::Forward, Direction::Backward][random.below(2)];
    match random.below(200) {
        0..=4 => Operation::Publish,
        5 => Operation::Abort,
        6..=7 => Operation::Checkpoint,
        8 => Operation::Keep,
        9 => Operation::Release {
            which: random.below(8),
        },
        10 if reopens => Operation::Reopen,
        11 => Operation::Check,
        12 => Operation::Vacuum,
        13..=29 => Operation::Get {
            tree,
            key: shape.key(random, keys),
        },
        30..=34 => {
            let range = range(random, shape, keys);
            Operation::Scan {
                tree,
                range,
                direction,
                limit: 1 + random.below(50),
            }
        }
        35..=37 => Operation::Sums {
            tree,
            range: range(random, shape, keys),
        },
        38..=52 => {
            let (key, keep_key) = (shape.key(random, keys), shape.key(random, keys));
            let other = if tree == 2 { 3 } else { 2 };
            // The same tree too, but not the same key.
            let keep_tree = match random.below(2) {
                0 if key != keep_key => tree,
                _ => other,
            };
            Operation::PutAndKeep {
                tree,
                key,
                value: value(random),
                keep_tree,
                keep_key,
                head: vec![b'h'; [0, 20, 40, 900][random.below(4)]],
            }
        }
        53..=54 => {
            let count = [1, 5, 30, 30, 30, 400][random.below(6)];
            let entry = |_| (shape.key(random, keys), value(random));
            Operation::PutAll {
                tree,
                entries: (0..count).map(entry).collect(),
            }
        }
        55..=80 => Operation::GetPut {
            tree,
            key: shape.key(random, keys),
            value: value(random),
        },
        _ => Operation::Put {
            tree,
            key: shape.key(random, keys),
            value: value(random),
        },
    }
}
