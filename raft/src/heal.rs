//! How a damaged member comes back without an operator.
//!
//! A member whose files are damaged ([`RaftError::is_damage`]) may have lost entries
//! that it acknowledged, and a vote that it gave. So it must take part in nothing any
//! more, under the id under which it acknowledged and voted. It comes back as somebody
//! else: a learner with a fresh id, which the cluster puts in its place.
//!
//! | step | durable before it | if the process ends here |
//! |---|---|---|
//! | [`Healing::begin`] | nothing | the next start finds the damage again |
//! | [`Healing::set_aside`] | the healing file: who it was, who it will be, what was found | the next start finds the file, and goes on with the same fresh id |
//! | the cluster is asked to replace it ([`Change::Replace`]) | nothing under its names but the healing file: nothing to vote or to acknowledge with | it is asked again: one that is replaced already is told so |
//! | [`Healing::finish`] | the members with the learner among them, as the cluster told | the member file names the fresh id: only the healing file is left to be removed |
//! | the node starts: a learner without a log, which is sent a snapshot | the member file | as for any learner that joins |
//!
//! What was damaged is renamed into a directory beside, and never removed by the node.
//! As a disk that damages what it is given would be filled with copies, a member heals
//! no more once [`MAX_SET_ASIDE`] of them are there.
//!
//! [`Change::Replace`]: crate::Change::Replace

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use varve_engine::disk::Disk;
use varve_engine::mvcc::Store;
use varve_engine::wal::Identity;

use crate::config::Config;
use crate::error::RaftError;
use crate::identity;
use crate::member_file::{self, MEMBER_FILE, Owner};
use crate::membership::Membership;
use crate::meta;
use crate::start;
use crate::stores::StoreFiles;
use crate::whole_file;

/// The file that says that the member is being healed.
const HEALING_FILE: &str = "healing";
const FIRST_LINE: &str = "varve healing 1";
/// What the directories begin with into which damaged files are put.
const SET_ASIDE: &str = "damaged-";
/// So many of them may be there.
const MAX_SET_ASIDE: usize = 3;

/// A member that is being healed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Healing {
    /// Its cluster.
    pub cluster_id: u64,
    /// Who it was.
    pub damaged_id: u64,
    /// Who it will be.
    pub fresh_id: u64,
    /// What was found, in one line.
    pub reason: String,
    /// Peer URLs of others that it knew of: whom to ask.
    pub peer_urls: Vec<String>,
    /// The directory beside, for the damaged files.
    directory: String,
}

/// Whose files are damaged, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damaged {
    /// Its cluster.
    pub cluster_id: u64,
    /// The member.
    pub member_id: u64,
}

impl Healing {
    /// The healing that was begun in the data directory and is not finished.
    pub fn under_way(config: &Config) -> Result<Option<Self>, RaftError> {
        let path = config.data_dir.join(HEALING_FILE);
        match config.disk.exists(&path)? {
            true => read(&*config.disk, &path).map(Some),
            false => Ok(None),
        }
    }

    /// Whose data directory it is, if that can be read.
    pub fn damaged_member(config: &Config) -> Option<Damaged> {
        let path = config.data_dir.join(MEMBER_FILE);
        let owner = member_file::read(&*config.disk, &path).ok()?;
        (!owner.is_removed).then_some(Damaged {
            cluster_id: owner.identity.cluster_id,
            member_id: owner.identity.member_id,
        })
    }

    /// Notes durably that the member is damaged: from here on it is nobody until it is
    /// healed. `cluster` and `peer_urls` name others of whom is known besides.
    pub fn begin(
        config: &Config,
        damaged: Damaged,
        reason: &str,
        peer_urls: impl IntoIterator<Item = String>,
    ) -> Result<Self, RaftError> {
        let aside = set_aside(config)?;
        if aside.len() >= MAX_SET_ASIDE {
            return Err(RaftError::CannotHeal(format!(
                "{reason}; {} sets of damaged files are in {} already ({}): the disk seems to \
                 damage what it is given. Look at it, remove them, and start the member again",
                aside.len(),
                config.data_dir.display(),
                aside.join(", ")
            )));
        }
        let own = sorted(&config.advertise_peer_urls);
        let mut urls: Vec<String> = peer_urls.into_iter().collect();
        for members in known_members(config) {
            let others = members.members();
            let others = others.filter(|other| other.id != damaged.member_id);
            urls.extend(others.flat_map(|other| other.peer_urls.iter().cloned()));
        }
        urls.retain(|url| !own.contains(url));
        urls.sort_unstable();
        urls.dedup();
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default();
        let directory = (now.as_secs()..)
            .map(|second| format!("{SET_ASIDE}{second}"))
            .find(|name| !aside.contains(name));
        let healing = Self {
            cluster_id: damaged.cluster_id,
            damaged_id: damaged.member_id,
            // Nanoseconds: no other member of these URLs was made in this one.
            fresh_id: identity::added_member_id(&own, now.as_nanos() as i64),
            reason: reason.replace(['\n', '\r'], " "),
            peer_urls: urls,
            directory: directory.unwrap_or_default(),
        };
        config.disk.create_dir(&config.data_dir)?;
        write(&*config.disk, &config.data_dir, &healing)?;
        Ok(healing)
    }

    /// Takes back [`Healing::begin`]: nothing was changed besides.
    pub fn call_off(&self, config: &Config) -> Result<(), RaftError> {
        config.disk.remove(&config.data_dir.join(HEALING_FILE))?;
        Ok(config.disk.sync_dir(&config.data_dir)?)
    }

    /// Puts everything that is the damaged member's into a directory beside; where.
    pub fn set_aside(&self, config: &Config) -> Result<PathBuf, RaftError> {
        let target = config.data_dir.join(&self.directory);
        if self.is_finished(config)? {
            return Ok(target); // what is there is the new member's
        }
        let disk = &*config.disk;
        let wal_dir = start::wal_dir(config);
        let wal_target = match &config.wal_dir {
            Some(dir) => dir.join(&self.directory),
            None => target.join("wal"),
        };
        // Before anything is put into it: what is in a directory that is gone is gone.
        disk.create_dir(&target)?;
        disk.sync_dir(&config.data_dir)?;
        let is_log = |name: &str| name.ends_with(".wal") || name.ends_with(".spare");
        move_files(disk, &wal_dir, &wal_target, is_log)?;
        // The member file last: as long as it is there, so is what it speaks of.
        let is_store = |name: &str| name.starts_with("store-");
        move_files(disk, &config.data_dir, &target, is_store)?;
        let next = whole_file::name_of_next(MEMBER_FILE);
        let is_member = |name: &str| name == MEMBER_FILE || name == next;
        move_files(disk, &config.data_dir, &target, is_member)?;
        Ok(target)
    }

    /// Makes the data directory that of the fresh member, with whom the cluster has
    /// replaced the damaged one.
    pub fn finish(&self, config: &Config, members: &Membership) -> Result<(), RaftError> {
        let disk = &*config.disk;
        if !self.is_finished(config)? {
            let owner = Owner {
                joined: Some(members.clone()),
                healed: Some(self.damaged_id),
                ..Owner::new(Identity {
                    cluster_id: self.cluster_id,
                    member_id: self.fresh_id,
                })
            };
            member_file::write(disk, &config.data_dir, &owner)?;
        }
        disk.remove(&config.data_dir.join(HEALING_FILE))?;
        Ok(disk.sync_dir(&config.data_dir)?)
    }

    /// Whether only the healing file is left to be removed.
    pub fn is_finished(&self, config: &Config) -> Result<bool, RaftError> {
        let path = config.data_dir.join(MEMBER_FILE);
        if !config.disk.exists(&path)? {
            return Ok(false);
        }
        // One that cannot be read is part of what is to be set aside.
        let owner = member_file::read(&*config.disk, &path);
        Ok(owner.is_ok_and(|owner| owner.identity.member_id == self.fresh_id))
    }
}

/// The member in whose place the one of this data directory came, if it did.
pub fn healed_from(config: &Config) -> Option<u64> {
    let path = config.data_dir.join(MEMBER_FILE);
    member_file::read(&*config.disk, &path).ok()?.healed
}

/// The storage engine that the store of this data directory was last opened with.
pub fn engine_of(config: &Config) -> Option<String> {
    let path = config.data_dir.join(MEMBER_FILE);
    member_file::read(&*config.disk, &path).ok()?.engine
}

/// The directories with damaged files.
pub fn set_aside(config: &Config) -> Result<Vec<String>, RaftError> {
    if !config.disk.exists(&config.data_dir)? {
        return Ok(Vec::new());
    }
    let mut names = config.disk.list(&config.data_dir)?;
    names.retain(|name| name.starts_with(SET_ASIDE));
    Ok(names)
}

/// The members that whatever is left speaks of.
fn known_members(config: &Config) -> Vec<Membership> {
    let path = config.data_dir.join(MEMBER_FILE);
    let owner = member_file::read(&*config.disk, &path).ok();
    let joined = owner.and_then(|owner| owner.joined);
    let files = StoreFiles::new(
        config.data_dir.clone(),
        config.disk.clone(),
        config.open_store.clone(),
    );
    let stored = |number: u64| {
        let store = Store::open(files.open(number).ok()?).ok()?;
        let members = meta::members(&store.view()).ok()??;
        Some((*members).clone())
    };
    let numbers = files.numbers().unwrap_or_default();
    joined
        .into_iter()
        .chain(numbers.into_iter().filter_map(stored))
        .collect()
}

fn move_files(
    disk: &dyn Disk,
    from: &Path,
    to: &Path,
    is_meant: impl Fn(&str) -> bool,
) -> Result<(), RaftError> {
    if !disk.exists(from)? {
        return Ok(());
    }
    let mut names = disk.list(from)?;
    names.retain(|name| is_meant(name));
    if names.is_empty() {
        return Ok(());
    }
    disk.create_dir(to)?;
    for name in names {
        disk.rename(&from.join(&name), &to.join(&name))?;
    }
    if let Some(parent) = to.parent() {
        disk.sync_dir(parent)?;
    }
    // There first: a crash must not leave a file nowhere.
    disk.sync_dir(to)?;
    Ok(disk.sync_dir(from)?)
}

fn sorted(urls: &[String]) -> Vec<String> {
    let mut urls = urls.to_vec();
    urls.sort_unstable();
    urls
}

fn write(disk: &dyn Disk, data_dir: &Path, healing: &Healing) -> Result<(), RaftError> {
    let mut text = format!(
        "{FIRST_LINE}\ncluster {:016x}\ndamaged {:016x}\nfresh {:016x}\naside {}\nfound {}\n",
        healing.cluster_id, healing.damaged_id, healing.fresh_id, healing.directory, healing.reason
    );
    for url in &healing.peer_urls {
        text.push_str(&format!("peer {url}\n"));
    }
    text.push_str("end\n");
    whole_file::replace(disk, data_dir, HEALING_FILE, &text)
}

fn read(disk: &dyn Disk, path: &Path) -> Result<Healing, RaftError> {
    let text = whole_file::read(disk, path)?;
    let field = |name: &str| {
        let mut lines = text.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
    };
    let id = |name: &str| u64::from_str_radix(field(name)?, 16).ok();
    let parsed = || {
        if !text.starts_with(FIRST_LINE) || !text.ends_with("\nend\n") {
            return None;
        }
        let directory = field("aside")?;
        let is_one = directory.starts_with(SET_ASIDE) && !directory.contains('/');
        is_one.then_some(())?;
        let peers = text.lines().filter_map(|line| line.strip_prefix("peer "));
        Some(Healing {
            cluster_id: id("cluster")?,
            damaged_id: id("damaged")?,
            fresh_id: id("fresh")?,
            reason: field("found")?.to_owned(),
            peer_urls: peers.map(str::to_owned).collect(),
            directory: directory.to_owned(),
        })
    };
    parsed().ok_or_else(|| {
        RaftError::CannotHeal(format!(
            "{} says that this member is being healed, but not how: move everything out of the \
             data directory and start the member again, to be replaced as a whole",
            path.display()
        ))
    })
}

#[cfg(test)]
#[path = "tests/heal.rs"]
mod tests;
