//! What the generator knows of each key: the basis of all verification.
//!
//! Several clients write the same key at once, so neither the order of sequence
//! numbers nor that of acknowledgements is the order of the store. Revisions
//! are: a put's answer carries the revision that the put made, which later
//! shows as the key's mod revision. So the ledger keeps, for each key, the
//! newest revision known to be committed and whose write made it.

/// One key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct KeyRecord {
    /// The newest revision of the key that was acknowledged or read.
    pub(crate) known_revision: i64,
    /// The sequence number of the write that made it.
    pub(crate) known_sequence: u64,
    /// Puts sent.
    pub(crate) issued: u32,
    /// Puts acknowledged.
    pub(crate) acknowledged: u32,
}

/// All keys.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    records: Vec<KeyRecord>,
}

impl Ledger {
    /// Nothing known of `keys` keys.
    pub(crate) fn new(keys: u32) -> Self {
        Self {
            records: vec![KeyRecord::default(); keys as usize],
        }
    }

    /// The keys in order.
    pub(crate) fn records(&self) -> &[KeyRecord] {
        &self.records
    }

    /// A copy with the known revisions but no counts: what a worker starts from,
    /// so that merging it back counts nothing twice.
    pub(crate) fn for_worker(&self) -> Self {
        let mut copy = self.clone();
        for record in &mut copy.records {
            (record.issued, record.acknowledged) = (0, 0);
        }
        copy
    }

    /// Adds what a worker learned.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.records.iter_mut().zip(&other.records) {
            if theirs.known_revision > mine.known_revision {
                mine.known_revision = theirs.known_revision;
                mine.known_sequence = theirs.known_sequence;
            }
            mine.issued += theirs.issued;
            mine.acknowledged += theirs.acknowledged;
        }
    }

    /// Puts sent and puts acknowledged.
    pub(crate) fn totals(&self) -> (u64, u64) {
        self.records.iter().fold((0, 0), |(issued, acked), record| {
            (
                issued + u64::from(record.issued),
                acked + u64::from(record.acknowledged),
            )
        })
    }

    pub(crate) fn known_revision(&self, key: u32) -> i64 {
        self.records[key as usize].known_revision
    }

    /// A put of `key` was sent.
    pub(crate) fn issued(&mut self, key: u32) {
        self.records[key as usize].issued += 1;
    }

    /// The put of `sequence` was acknowledged at `revision`.
    pub(crate) fn acknowledged(
        &mut self,
        key: u32,
        revision: i64,
        sequence: u64,
    ) -> Result<(), String> {
        self.records[key as usize].acknowledged += 1;
        if revision <= 0 {
            return Err(format!("a put was acknowledged at revision {revision}"));
        }
        self.observed(key, revision, sequence)
    }

    /// The key's value of `revision` is that of `sequence`.
    pub(crate) fn observed(
        &mut self,
        key: u32,
        revision: i64,
        sequence: u64,
    ) -> Result<(), String> {
        let record = &mut self.records[key as usize];
        if revision > record.known_revision {
            record.known_revision = revision;
            record.known_sequence = sequence;
        } else if revision == record.known_revision && sequence != record.known_sequence {
            return Err(format!(
                "revision {revision} is of write {sequence} and of write {}",
                record.known_sequence
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_revision_wins_whatever_the_order() {
        let mut ledger = Ledger::new(2);
        ledger.acknowledged(1, 9, 50).unwrap();
        ledger.acknowledged(1, 7, 60).unwrap();
        assert_eq!(ledger.known_revision(1), 9);
        assert_eq!(ledger.records()[1].known_sequence, 50);
        assert!(
            ledger.acknowledged(1, 9, 70).is_err(),
            "two at one revision"
        );
        assert!(ledger.acknowledged(0, 0, 1).is_err(), "no revision");
    }

    #[test]
    fn merge_counts_once() {
        let mut ledger = Ledger::new(1);
        ledger.issued(0);
        ledger.acknowledged(0, 2, 1).unwrap();
        let (mut one, two) = (ledger.for_worker(), ledger.for_worker());
        one.issued(0);
        one.acknowledged(0, 3, 2).unwrap();
        ledger.merge(&one);
        ledger.merge(&two);
        assert_eq!(ledger.totals(), (2, 2));
        assert_eq!(ledger.known_revision(0), 3);
    }
}
