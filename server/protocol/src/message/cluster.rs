//! Changes of the membership and of the leader.

use varve_types::{DecodeError, Reader, flags, put_count};

use super::node::{Member, MemberListResponse, put_strings, strings};

/// Adds a member.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemberAddRequest {
    /// Where members will reach it.
    pub peer_urls: Vec<String>,
    /// Whether it joins without a vote.
    pub is_learner: bool,
    /// Whether it then gets its vote by itself once it has caught up.
    pub is_promotable: bool,
}

impl MemberAddRequest {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(flags([self.is_learner, self.is_promotable]));
        put_strings(out, &self.peer_urls);
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let flags = reader.u8("member add flags")?;
        Ok(Self {
            is_learner: flags & 1 != 0,
            is_promotable: flags & 2 != 0,
            peer_urls: strings(reader, "peer_urls")?,
        })
    }
}

/// Answer to [`MemberAddRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemberAddResponse {
    /// The new member.
    pub member: Member,
    /// All members, by id, ascending.
    pub members: Vec<Member>,
}

impl MemberAddResponse {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.member.encode(out);
        put_count(out, self.members.len());
        for member in &self.members {
            member.encode(out);
        }
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            member: Member::decode(reader)?,
            members: MemberListResponse::decode(reader)?.members,
        })
    }
}

/// Removes or promotes a member, or makes it the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemberIdRequest {
    /// The member.
    pub id: u64,
}

impl MemberIdRequest {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.to_le_bytes());
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            id: reader.u64("member id")?,
        })
    }
}

/// Gives a member other peer URLs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemberUpdateRequest {
    /// The member.
    pub id: u64,
    /// Where members reach it from now on.
    pub peer_urls: Vec<String>,
}

impl MemberUpdateRequest {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.to_le_bytes());
        put_strings(out, &self.peer_urls);
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            id: reader.u64("member id")?,
            peer_urls: strings(reader, "peer_urls")?,
        })
    }
}
