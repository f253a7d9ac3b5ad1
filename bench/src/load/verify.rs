//! Reads everything back and holds it against the ledger.
//!
//! For each member, and on each through linearizable reads, so that the member
//! has applied everything acknowledged before:
//!
//! - every key with an acknowledged or observed write is there;
//! - its mod revision is at least the newest one known, and where it is equal,
//!   the value is the one that that very write carried;
//! - the value is, to the last byte, one that this program wrote to this key;
//! - its version grew by at least the number of acknowledged puts of the key, so
//!   that also every *overwritten* acknowledged put is accounted for, and (where
//!   nobody else writes) by no more than the number of puts sent, so that none
//!   was done twice;
//! - the store's revision grew by at least the acknowledged puts of all keys,
//!   and (where nobody else writes) by no more than the puts sent.

use std::time::Duration;

use varve_types::{KeyRange, KeyValue};

use super::ledger::{KeyRecord, Ledger};
use super::value;
use crate::cli::TargetKind;
use crate::error::{BenchError, Result};
use crate::target::Admin;

/// About this many bytes of values are asked for at a time.
const PAGE_BYTES: usize = 512 * 1024;
/// How long a member may take for one page.
const PAGE_PATIENCE: Duration = Duration::from_secs(15);
const EXAMPLES: usize = 16;

/// The store before the run.
#[derive(Debug)]
pub(crate) struct Baseline {
    versions: Vec<i64>,
    revision: i64,
}

impl Baseline {
    /// Reads it from one endpoint.
    pub(crate) async fn read(
        target: TargetKind,
        endpoint: &str,
        keys: u32,
        value_size: usize,
    ) -> Result<Self> {
        let mut versions = vec![0; keys as usize];
        let revision = scan(target, endpoint, value_size, |kv| {
            if let Some(version) =
                value::key_number(&kv.key).and_then(|key| versions.get_mut(key as usize))
            {
                *version = kv.version;
            }
        })
        .await?;
        Ok(Self { versions, revision })
    }
}

/// What the verification found.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// Members that could not be read, and why.
    pub(crate) unreachable: Vec<String>,
    /// Members read.
    pub(crate) members: usize,
    /// Keys compared, on all members.
    pub(crate) keys: u64,
    /// Puts acknowledged in all phases.
    pub(crate) acknowledged: u64,
    /// Puts sent that were never acknowledged; they may be there or not.
    pub(crate) unacknowledged: u64,
    /// Acknowledged writes that a member does not have.
    pub(crate) lost: u64,
    /// Keys whose value or history is not what was written.
    pub(crate) mismatched: u64,
    /// The first findings in words.
    pub(crate) examples: Vec<String>,
}

impl Verdict {
    /// Whether nothing was found.
    pub(crate) fn is_clean(&self) -> bool {
        self.lost == 0 && self.mismatched == 0
    }

    fn note(&mut self, what: String) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(what);
        }
    }
}

/// Verifies every endpoint. `exclusive`: nobody else wrote to the cluster.
pub(crate) async fn verify(
    target: TargetKind,
    endpoints: &[String],
    value_size: usize,
    ledger: &Ledger,
    baseline: &Baseline,
    exclusive: bool,
) -> Result<Verdict> {
    let (issued, acknowledged) = ledger.totals();
    let mut verdict = Verdict {
        acknowledged,
        unacknowledged: issued - acknowledged,
        ..Verdict::default()
    };
    for endpoint in endpoints {
        let member = Member {
            target,
            endpoint,
            value_size,
            exclusive,
        };
        match member.verify(ledger, baseline, &mut verdict).await {
            Ok(()) => verdict.members += 1,
            // A member may be down on purpose; the others have to have everything.
            Err(error) => verdict.unreachable.push(error.to_string()),
        }
    }
    if verdict.members == 0 {
        return Err(BenchError::Usage(format!(
            "nothing could be verified: {}",
            verdict.unreachable.join("; ")
        )));
    }
    Ok(verdict)
}

struct Member<'a> {
    target: TargetKind,
    endpoint: &'a str,
    value_size: usize,
    exclusive: bool,
}

impl Member<'_> {
    async fn verify(
        &self,
        ledger: &Ledger,
        baseline: &Baseline,
        verdict: &mut Verdict,
    ) -> Result<()> {
        let (issued, acknowledged) = ledger.totals();
        let mut checker = Checker {
            endpoint: self.endpoint,
            value_size: self.value_size,
            exclusive: self.exclusive,
            verdict,
        };
        let mut next = 0;
        let revision = scan(self.target, self.endpoint, self.value_size, |kv| {
            let Some(key) = value::key_number(&kv.key).map(|key| key as usize) else {
                return;
            };
            let Some(record) = ledger.records().get(key) else {
                return;
            };
            for absent in next..key {
                checker.absent(absent, &ledger.records()[absent]);
            }
            next = key + 1;
            checker.present(key, kv, record, baseline.versions[key]);
        })
        .await?;
        for (absent, record) in ledger.records().iter().enumerate().skip(next) {
            checker.absent(absent, record);
        }
        checker.revision(revision - baseline.revision, acknowledged, issued);
        Ok(())
    }
}

struct Checker<'a> {
    endpoint: &'a str,
    value_size: usize,
    exclusive: bool,
    verdict: &'a mut Verdict,
}

impl Checker<'_> {
    fn absent(&mut self, key: usize, record: &KeyRecord) {
        if record.known_revision > 0 {
            self.verdict.keys += 1;
            self.verdict.lost += u64::from(record.acknowledged.max(1));
            self.verdict.note(format!(
                "{}: key {key} is missing; revision {} of it was acknowledged",
                self.endpoint, record.known_revision
            ));
        }
    }

    fn present(&mut self, key: usize, kv: &KeyValue, record: &KeyRecord, version_before: i64) {
        if record.issued == 0 && record.known_revision == 0 {
            return; // Not touched in this run: nothing is known of it.
        }
        self.verdict.keys += 1;
        let grown = kv.version - version_before;
        let acknowledged = i64::from(record.acknowledged);
        if kv.mod_revision < record.known_revision || grown < acknowledged {
            self.verdict.lost += (acknowledged - grown).max(1) as u64;
            self.verdict.note(format!(
                "{}: key {key} is at revision {} after {grown} puts; acknowledged were {acknowledged}, the newest at revision {}",
                self.endpoint, kv.mod_revision, record.known_revision
            ));
            return;
        }
        let wrong = match value::check(&kv.value, self.value_size, key as u32) {
            Err(what) => Some(what),
            Ok(sequence)
                if kv.mod_revision == record.known_revision
                    && sequence != record.known_sequence =>
            {
                Some(format!(
                    "write {sequence} where write {} was acknowledged",
                    record.known_sequence
                ))
            }
            Ok(_) if self.exclusive && grown > i64::from(record.issued) => Some(format!(
                "{grown} puts done where {} were sent",
                record.issued
            )),
            Ok(_) => None,
        };
        if let Some(what) = wrong {
            self.verdict.mismatched += 1;
            self.verdict.note(format!(
                "{}: key {key} at revision {}: {what}",
                self.endpoint, kv.mod_revision
            ));
        }
    }

    fn revision(&mut self, grown: i64, acknowledged: u64, issued: u64) {
        if grown < acknowledged as i64 {
            self.verdict.lost += (acknowledged as i64 - grown) as u64;
            self.verdict.note(format!(
                "{}: the store's revision grew by {grown}; {acknowledged} puts were acknowledged",
                self.endpoint
            ));
        } else if self.exclusive && grown > issued as i64 {
            self.verdict.mismatched += 1;
            self.verdict.note(format!(
                "{}: the store's revision grew by {grown}; only {issued} puts were sent",
                self.endpoint
            ));
        }
    }
}

/// Visits every key of ours in order; returns the store's revision at the end.
async fn scan(
    target: TargetKind,
    endpoint: &str,
    value_size: usize,
    mut visit: impl FnMut(&KeyValue),
) -> Result<i64> {
    let limit = (PAGE_BYTES / value_size.max(1)).clamp(1, 1000) as i64;
    let end = KeyRange::prefix_end(value::KEY_PREFIX);
    let mut from = value::KEY_PREFIX.to_vec();
    let mut admin = Admin::connect(target, endpoint).await?;
    loop {
        let page = tokio::time::timeout(PAGE_PATIENCE, admin.range(&from, &end, limit))
            .await
            .map_err(|_| BenchError::target(endpoint, "no answer to a range"))??;
        for kv in &page.kvs {
            visit(kv);
        }
        match page.kvs.last() {
            Some(last) if page.more => {
                from.clear();
                from.extend_from_slice(&last.key);
                from.push(0);
            }
            _ => return Ok(page.revision),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(version: i64, mod_revision: i64, sequence: u64) -> KeyValue {
        let mut value = Vec::new();
        value::fill(&mut value, 64, 3, sequence);
        KeyValue {
            key: value::key_bytes(3).to_vec(),
            version,
            mod_revision,
            value,
            ..KeyValue::default()
        }
    }

    fn judge(kv: Option<KeyValue>, exclusive: bool) -> (u64, u64) {
        let record = KeyRecord {
            known_revision: 20,
            known_sequence: 7,
            issued: 4,
            acknowledged: 3,
        };
        let mut verdict = Verdict::default();
        let mut checker = Checker {
            endpoint: "e",
            value_size: 64,
            exclusive,
            verdict: &mut verdict,
        };
        match kv {
            Some(kv) => checker.present(3, &kv, &record, 1),
            None => checker.absent(3, &record),
        }
        (verdict.lost, verdict.mismatched)
    }

    #[test]
    fn judgement_of_a_key() {
        assert_eq!(judge(Some(stored(4, 20, 7)), true), (0, 0), "as known");
        assert_eq!(
            judge(Some(stored(5, 21, 9)), true),
            (0, 0),
            "one unacknowledged"
        );
        assert_eq!(judge(None, true), (3, 0), "missing");
        assert_eq!(
            judge(Some(stored(4, 19, 6)), true),
            (1, 0),
            "the last is gone"
        );
        assert_eq!(
            judge(Some(stored(2, 20, 7)), true),
            (2, 0),
            "overwritten ones are gone"
        );
        assert_eq!(
            judge(Some(stored(4, 20, 8)), true),
            (0, 1),
            "another write's value"
        );
        assert_eq!(
            judge(Some(stored(6, 21, 9)), true),
            (0, 1),
            "one done twice"
        );
        assert_eq!(
            judge(Some(stored(6, 21, 9)), false),
            (0, 0),
            "others write too"
        );
        let mut damaged = stored(4, 20, 7);
        damaged.value[40] ^= 1;
        assert_eq!(judge(Some(damaged), true), (0, 1));
    }
}
