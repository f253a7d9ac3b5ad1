//! Groups.

/// Records that are to be committed together. Reusable: [`Group::clear`] keeps
/// the memory.
#[derive(Debug, Default)]
pub struct Group {}

#[allow(unused_variables)]
impl Group {
    /// An empty group.
    pub fn new() -> Self {
        unimplemented!()
    }

    /// Adds a record whose payload is the concatenation of `parts`, and returns
    /// its offset in the group: its lsn will be the group's
    /// `first_lsn + offset`.
    ///
    /// # Panics
    /// If `kind` is 0 or above [`super::MAX_KIND`] (a mistake of the program,
    /// never of its input).
    pub fn push(&mut self, kind: u8, parts: &[&[u8]]) -> super::Result<u64> {
        unimplemented!()
    }

    /// Number of records.
    pub fn records(&self) -> usize {
        unimplemented!()
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        unimplemented!()
    }

    /// Bytes of the records with their headers.
    pub fn bytes(&self) -> usize {
        unimplemented!()
    }

    /// Removes all records.
    pub fn clear(&mut self) {
        unimplemented!()
    }
}
