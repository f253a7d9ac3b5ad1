//! One snapshot on its way in, as the transport that receives it sees it.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::RaftError;
use crate::io::Input;
use crate::loading::Incoming;
use crate::shared::Shared;

/// Takes in one snapshot stream. Writes to disk: not on an async worker.
/// Dropped before [`SnapshotReceiver::finish`], it leaves what came to be gone on with.
pub struct SnapshotReceiver {
    incoming: Incoming,
    shared: Arc<Shared>,
}

impl SnapshotReceiver {
    pub(crate) fn new(incoming: Incoming, shared: Arc<Shared>) -> Self {
        Self { incoming, shared }
    }

    /// How many chunks were there already.
    pub fn resumed_at(&self) -> u64 {
        self.incoming.resumed_at()
    }

    /// Where the sender is to go on.
    pub fn position(&self) -> Vec<u8> {
        self.incoming.position()
    }

    /// The next chunk, in order. An error ends the stream.
    pub fn chunk(&mut self, bytes: &Bytes) -> Result<(), RaftError> {
        self.incoming.chunk(bytes)
    }

    /// After the last chunk: hands the loaded store to the replica.
    pub fn finish(self) -> Result<(), RaftError> {
        let loaded = self.incoming.finish()?;
        let sent = self
            .shared
            .inputs
            .send(Input::SnapshotLoaded(Box::new(loaded)));
        sent.map_err(|_| RaftError::Stopped("shutting down".to_owned()))
    }
}
