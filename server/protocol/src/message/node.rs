//! Messages about a node and its cluster.

use varve_types::{DecodeError, Reader, flags, put_bytes, put_count, put_i64};

/// Opens a conversation. Optional: a client that knows its server may leave it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HelloRequest<'a> {
    /// Name and version of the client, for logs.
    pub client: &'a str,
}

impl<'a> HelloRequest<'a> {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_bytes(out, self.client.as_bytes());
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            client: reader.string("client")?,
        })
    }
}

/// Answer to a hello.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HelloResponse {
    /// Version of the node.
    pub server_version: String,
    /// Version of the cluster: the lowest of its members'.
    pub cluster_version: String,
    /// The member's name.
    pub member_name: String,
    /// `--max-request-bytes` of the node.
    pub max_request_bytes: u64,
}

impl HelloResponse {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_bytes(out, self.server_version.as_bytes());
        put_bytes(out, self.cluster_version.as_bytes());
        put_bytes(out, self.member_name.as_bytes());
        out.extend_from_slice(&self.max_request_bytes.to_le_bytes());
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            server_version: reader.string("server_version")?.to_owned(),
            cluster_version: reader.string("cluster_version")?.to_owned(),
            member_name: reader.string("member_name")?.to_owned(),
            max_request_bytes: reader.u64("max_request_bytes")?,
        })
    }
}

/// The state of a member.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StatusResponse {
    /// Version of the node.
    pub version: String,
    /// Version of the files it stores.
    pub storage_version: String,
    /// Its storage engine.
    pub engine: String,
    /// Bytes of the database.
    pub db_size: i64,
    /// Bytes of it that hold something.
    pub db_size_in_use: i64,
    /// Quota of the database in bytes; 0 is none.
    pub db_size_quota: i64,
    /// The leader it knows; 0 is none.
    pub leader: u64,
    /// Its committed index.
    pub raft_index: u64,
    /// Its term.
    pub raft_term: u64,
    /// Its applied index.
    pub raft_applied_index: u64,
    /// Whether it is a learner.
    pub is_learner: bool,
    /// What is wrong with it: alarms, no leader.
    pub errors: Vec<String>,
}

impl StatusResponse {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(flags([self.is_learner]));
        for size in [self.db_size, self.db_size_in_use, self.db_size_quota] {
            put_i64(out, size);
        }
        for number in [
            self.leader,
            self.raft_index,
            self.raft_term,
            self.raft_applied_index,
        ] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for text in [&self.version, &self.storage_version, &self.engine] {
            put_bytes(out, text.as_bytes());
        }
        put_strings(out, &self.errors);
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            is_learner: reader.u8("status flags")? & 1 != 0,
            db_size: reader.i64("db_size")?,
            db_size_in_use: reader.i64("db_size_in_use")?,
            db_size_quota: reader.i64("db_size_quota")?,
            leader: reader.u64("leader")?,
            raft_index: reader.u64("raft_index")?,
            raft_term: reader.u64("raft_term")?,
            raft_applied_index: reader.u64("raft_applied_index")?,
            version: reader.string("version")?.to_owned(),
            storage_version: reader.string("storage_version")?.to_owned(),
            engine: reader.string("engine")?.to_owned(),
            errors: strings(reader, "errors")?,
        })
    }
}

/// Asks for the hash of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HashKvRequest {
    /// At this revision; 0 is the newest.
    pub revision: i64,
}

impl HashKvRequest {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_i64(out, self.revision);
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            revision: reader.i64("revision")?,
        })
    }
}

/// The hash of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HashKvResponse {
    /// Of the live keys at the revision; does not depend on order or engine.
    pub hash: u128,
    /// The revision it is of.
    pub hash_revision: i64,
    /// The oldest revision that the member can still read.
    pub compact_revision: i64,
}

impl HashKvResponse {
    /// The hash folded to 32 bits, the width that etcd prints.
    pub fn hash32(&self) -> u32 {
        let folded = (self.hash >> 64) as u64 ^ self.hash as u64;
        (folded >> 32) as u32 ^ folded as u32
    }

    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.hash.to_le_bytes());
        put_i64(out, self.hash_revision);
        put_i64(out, self.compact_revision);
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (low, high) = (reader.u64("hash")?, reader.u64("hash")?);
        Ok(Self {
            hash: u128::from(high) << 64 | u128::from(low),
            hash_revision: reader.i64("hash_revision")?,
            compact_revision: reader.i64("compact_revision")?,
        })
    }
}

/// Asks for the members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemberListRequest {
    /// Ask the leader first, so that the answer is not an old one.
    pub linearizable: bool,
}

impl MemberListRequest {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(flags([self.linearizable]));
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            linearizable: reader.u8("member list flags")? & 1 != 0,
        })
    }
}

/// One member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Member {
    /// Its id.
    pub id: u64,
    /// Its name; empty until it has started.
    pub name: String,
    /// Where members reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it; empty until it has started.
    pub client_urls: Vec<String>,
    /// Whether it is a learner.
    pub is_learner: bool,
}

impl Member {
    const LEAST_SIZE: usize = 1 + 8 + 4 + 4 + 4;

    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(flags([self.is_learner]));
        out.extend_from_slice(&self.id.to_le_bytes());
        put_bytes(out, self.name.as_bytes());
        put_strings(out, &self.peer_urls);
        put_strings(out, &self.client_urls);
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            is_learner: reader.u8("member flags")? & 1 != 0,
            id: reader.u64("member id")?,
            name: reader.string("member name")?.to_owned(),
            peer_urls: strings(reader, "peer_urls")?,
            client_urls: strings(reader, "client_urls")?,
        })
    }
}

/// The members of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemberListResponse {
    /// By id, ascending.
    pub members: Vec<Member>,
}

impl MemberListResponse {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_count(out, self.members.len());
        for member in &self.members {
            member.encode(out);
        }
    }

    /// Reads one encoding.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let count = reader.count(Member::LEAST_SIZE, "member count")?;
        let members = (0..count)
            .map(|_| Member::decode(reader))
            .collect::<Result<_, _>>()?;
        Ok(Self { members })
    }
}

pub(super) fn put_strings(out: &mut Vec<u8>, texts: &[String]) {
    put_count(out, texts.len());
    for text in texts {
        put_bytes(out, text.as_bytes());
    }
}

pub(super) fn strings(
    reader: &mut Reader<'_>,
    what: &'static str,
) -> Result<Vec<String>, DecodeError> {
    let count = reader.count(4, what)?;
    (0..count)
        .map(|_| reader.string(what).map(str::to_owned))
        .collect()
}
