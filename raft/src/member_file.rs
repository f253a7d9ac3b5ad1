//! The file that says whose a data directory is: of which member of which cluster.
//!
//! Text, a line each: `varve 1`, `cluster <hex>`, `member <hex>`, then as they apply
//! `joined <hex>` (the members of the cluster that was joined, encoded),
//! `healed <hex>` (the damaged member in whose place this one came), `begun` (the log
//! has been begun: if there is none, it was lost), `engine <name>` (of the store) and
//! `removed`; last `check <hex>`, the start of the SHA-1 over the lines before it. It is
//! replaced as a whole.

use std::path::Path;

use varve_engine::disk::Disk;
use varve_engine::wal::Identity;
use varve_types::Reader;

use crate::error::RaftError;
use crate::identity;
use crate::membership::Membership;
use crate::meta;
use crate::whole_file;

/// The file that says whose data directory it is.
pub const MEMBER_FILE: &str = "member";
/// Begins the line with the members of the cluster that was joined, encoded, in hex.
const JOINED: &str = "joined ";
/// Begins the line with the member that this one replaced.
const HEALED: &str = "healed ";
/// The line that says that the log has been begun.
const BEGUN_LINE: &str = "begun";
/// Begins the line with the storage engine.
const ENGINE: &str = "engine ";
/// The line that says that the member has been removed from the cluster.
const REMOVED_LINE: &str = "removed";
/// Begins the last line: the start of the SHA-1 over all before it.
const CHECK: &str = "check ";

/// Whose a data directory is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) identity: Identity,
    /// The members of the cluster that it joined, as they were then: the log begins
    /// with them, also if the first start is cut short before that.
    pub(crate) joined: Option<Membership>,
    /// The damaged member in whose place it came.
    pub(crate) healed: Option<u64>,
    /// The log has been begun: from then on there must be one.
    pub(crate) has_begun: bool,
    /// The storage engine that the store was last opened with.
    pub(crate) engine: Option<String>,
    pub(crate) is_removed: bool,
}

impl Owner {
    /// Of a directory that nothing else is known of.
    pub(crate) fn new(identity: Identity) -> Self {
        Self {
            identity,
            joined: None,
            healed: None,
            has_begun: false,
            engine: None,
            is_removed: false,
        }
    }
}

/// Writes the file, durably.
pub(crate) fn write(disk: &dyn Disk, data_dir: &Path, owner: &Owner) -> Result<(), RaftError> {
    let mut text = format!(
        "varve 1\ncluster {:016x}\nmember {:016x}\n",
        owner.identity.cluster_id, owner.identity.member_id,
    );
    if let Some(members) = &owner.joined {
        let bytes = meta::encode_members(members);
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        text.push_str(&format!("{JOINED}{digits}\n"));
    }
    if let Some(replaced) = owner.healed {
        text.push_str(&format!("{HEALED}{replaced:016x}\n"));
    }
    if owner.has_begun {
        text.push_str(&format!("{BEGUN_LINE}\n"));
    }
    if let Some(engine) = &owner.engine {
        text.push_str(&format!("{ENGINE}{engine}\n"));
    }
    if owner.is_removed {
        text.push_str(&format!("{REMOVED_LINE}\n"));
    }
    text.push_str(&format!("{CHECK}{:016x}\n", check_of(&text)));
    whole_file::replace(disk, data_dir, MEMBER_FILE, &text)
}

/// Reads the file at `path`.
pub(crate) fn read(disk: &dyn Disk, path: &Path) -> Result<Owner, RaftError> {
    let text = whole_file::read(disk, path)?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    if let Some(at) = text.rfind(CHECK)
        && u64::from_str_radix(text[at + CHECK.len()..].trim_end(), 16) != Ok(check_of(&text[..at]))
    {
        return Err(RaftError::Inconsistent(format!(
            "{} is not what was written to it",
            path.display()
        )));
    }
    match (
        text.starts_with("varve 1\n"),
        field("cluster "),
        field("member "),
    ) {
        (true, Some(cluster_id), Some(member_id)) => {
            let joined = text.lines().find_map(|line| line.strip_prefix(JOINED));
            let members = joined.map(decode_joined);
            if members.as_ref().is_some_and(Option::is_none) {
                return Err(RaftError::Inconsistent(format!(
                    "{} does not name the members of the cluster that was joined",
                    path.display()
                )));
            }
            Ok(Owner {
                identity: Identity {
                    cluster_id,
                    member_id,
                },
                joined: members.flatten(),
                healed: field(HEALED),
                has_begun: text.lines().any(|line| line == BEGUN_LINE),
                engine: text
                    .lines()
                    .find_map(|line| line.strip_prefix(ENGINE))
                    .map(str::to_owned),
                is_removed: text.lines().any(|line| line == REMOVED_LINE),
            })
        }
        _ => Err(RaftError::Inconsistent(format!(
            "{} does not name a member and a cluster",
            path.display()
        ))),
    }
}

/// Files of earlier versions have none.
fn check_of(text: &str) -> u64 {
    identity::member_id(&[text], "")
}

fn decode_joined(digits: &str) -> Option<Membership> {
    let pairs = digits.as_bytes().chunks(2);
    let bytes: Option<Vec<u8>> = pairs
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect();
    let bytes = bytes?;
    let mut reader = Reader::new(&bytes);
    let members = Membership::decode(&mut reader).ok()?;
    reader.finish().ok()?;
    Some(members)
}
