//! Reading back.

use super::{Lsn, Result};

/// Reads committed records back. Cheap to clone, for any thread.
#[derive(Debug, Clone)]
pub struct WalReader {}

#[allow(unused_variables)]
impl WalReader {
    /// The record at `lsn`: kind and payload, verified by its checksum.
    pub fn read(&self, lsn: Lsn) -> Result<(u8, Vec<u8>)> {
        unimplemented!()
    }
}
