//! What a replica keeps in the store, in the same batch as the entries it is of.

use std::sync::Arc;

use varve_engine::mvcc::View;
use varve_types::Reader;

use crate::error::RaftError;
use crate::membership::Membership;

/// Where the members are.
pub(crate) const MEMBERS: &[u8] = b"raft/members";

/// The members as of `view`; `None` for a store that was never used.
pub(crate) fn members(view: &View) -> Result<Option<Arc<Membership>>, RaftError> {
    let Some(bytes) = view.meta(MEMBERS)? else {
        return Ok(None);
    };
    let mut reader = Reader::new(&bytes);
    let members = Membership::decode(&mut reader)
        .and_then(|members| reader.finish().map(|()| members))
        .map_err(|error| RaftError::Inconsistent(format!("the store's members: {error}")))?;
    Ok(Some(Arc::new(members)))
}

/// The encoding of `members`.
pub(crate) fn encode_members(members: &Membership) -> Vec<u8> {
    let mut bytes = Vec::new();
    members.encode(&mut bytes);
    bytes
}
