//! What the B+tree behind its log is held against: peers in the same run, and
//! figures for one kind of machine.

use super::measure::Outcome;

/// One line of the verdict.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub(crate) struct Verdict {
    pub(crate) what: String,
    /// Measured over wanted; for sizes wanted over measured. From 1 on it is reached.
    pub(crate) ratio: f64,
}

impl Verdict {
    fn new(what: impl Into<String>, ratio: f64) -> Self {
        Self {
            what: what.into(),
            ratio,
        }
    }

    pub(crate) fn is_reached(&self) -> bool {
        self.ratio >= 1.0
    }

    pub(crate) fn line(&self) -> String {
        let verdict = match self.is_reached() {
            true => "reached",
            false => "NOT reached",
        };
        format!("{}: {verdict}, {:.2} x", self.what, self.ratio)
    }
}

/// The keys and values for which the figures are.
const KEYS: u32 = 1_000_000;
const VALUE_SIZE: usize = 256;

/// Rates of the `btree` row, per second.
const UPDATES: f64 = 450_000.0;
const GETS: f64 = 1_000_000.0;
const SCANNED: f64 = 12_000_000.0;
/// Bytes of its file after the load, once it had time to give space back.
const FILE: f64 = 340e6;

/// The verdicts that these rows allow.
pub(crate) fn verdicts(outcomes: &[Outcome], keys: u32, value_size: usize) -> Vec<Verdict> {
    let find = |name: &str| outcomes.iter().find(|outcome| outcome.row == name);
    let Some(btree) = find("btree") else {
        return Vec::new();
    };
    let mut verdicts = Vec::new();
    let peers = outcomes
        .iter()
        .filter(|outcome| !outcome.row.starts_with("varve"))
        .filter(|outcome| outcome.row != "btree" && outcome.row != "memory");
    for peer in peers {
        let mut over = |what: &str, ours: f64, theirs: f64| {
            let what = format!("{what} as fast as {}", peer.row);
            verdicts.push(Verdict::new(what, ours / theirs));
        };
        over("load", btree.load.per_second, peer.load.per_second);
        over("bulk load", btree.bulk.per_second, peer.bulk.per_second);
        over("update", btree.update.per_second, peer.update.per_second);
        over("get", btree.get.per_second, peer.get.per_second);
        over("scan", btree.scan.per_second, peer.scan.per_second);
        let (ours, theirs) = (btree.size_rested.data(), peer.size_rested.allocated);
        let what = format!("file after load no larger than {}'s", peer.row);
        verdicts.push(Verdict::new(what, theirs as f64 / ours.max(1) as f64));
    }
    if (keys, value_size) == (KEYS, VALUE_SIZE) {
        let rates = [
            ("update 450,000/s", btree.update.per_second, UPDATES),
            ("get 1,000,000/s", btree.get.per_second, GETS),
            ("scan 12,000,000 entries/s", btree.scan.per_second, SCANNED),
        ];
        for (what, measured, wanted) in rates {
            verdicts.push(Verdict::new(what, measured / wanted));
        }
        let file = btree.size_rested.data().max(1) as f64;
        verdicts.push(Verdict::new("file after load 340 MB", FILE / file));
    }
    verdicts
}
