//! The names of a file system: as programs see them, and as a power loss may leave them.
//!
//! # Invariants
//! 1. The durable names change only by a sync of their directory, and by a loss.
//! 2. A rename is there or not as a whole, also between two directories.
//! 3. Whatever a sync makes durable, all that was done before to the directories that it
//!    touches is durable, too.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};

use varve_engine::disk::sim::Rng;

use super::Keeps;

/// The root directory, as FUSE numbers it.
pub(super) const ROOT: u64 = 1;

type Directory = BTreeMap<OsString, u64>;
type Tree = BTreeMap<u64, Directory>;

/// A change that is not durable yet.
#[derive(Debug, Clone)]
enum Change {
    Set {
        parent: u64,
        name: OsString,
        inode: u64,
    },
    Remove {
        parent: u64,
        name: OsString,
        inode: u64,
    },
    Rename {
        from: (u64, OsString),
        to: (u64, OsString),
        inode: u64,
    },
}

impl Change {
    fn parents(&self) -> [u64; 2] {
        match self {
            Self::Set { parent, .. } | Self::Remove { parent, .. } => [*parent; 2],
            Self::Rename { from, to, .. } => [from.0, to.0],
        }
    }

    fn inode(&self) -> u64 {
        match self {
            Self::Set { inode, .. } | Self::Remove { inode, .. } | Self::Rename { inode, .. } => {
                *inode
            }
        }
    }

    /// Does it to a tree; whether it could be done there. Where the change that it builds
    /// on is lost, it is lost with it.
    fn apply(&self, tree: &mut Tree) -> bool {
        let has = |tree: &Tree, parent: u64, name: &OsStr, inode| {
            tree.get(&parent).and_then(|names| names.get(name)) == Some(&inode)
        };
        match self {
            Self::Set {
                parent,
                name,
                inode,
            } => {
                tree.entry(*parent)
                    .or_default()
                    .insert(name.clone(), *inode);
                true
            }
            Self::Remove {
                parent,
                name,
                inode,
            } => {
                let is_there = has(tree, *parent, name, *inode);
                if is_there {
                    tree.entry(*parent).or_default().remove(name);
                }
                is_there
            }
            Self::Rename { from, to, inode } => {
                let is_there = has(tree, from.0, &from.1, *inode);
                if is_there {
                    tree.entry(from.0).or_default().remove(&from.1);
                    tree.entry(to.0).or_default().insert(to.1.clone(), *inode);
                }
                is_there
            }
        }
    }
}

/// All names of one file system.
#[derive(Debug)]
pub(super) struct Names {
    current: Tree,
    durable: Tree,
    pending: Vec<Change>,
    /// Permissions of directories; those of files are with the files.
    modes: BTreeMap<u64, u32>,
    /// How many references the kernel has.
    known: BTreeMap<u64, u64>,
    next: u64,
}

impl Default for Names {
    fn default() -> Self {
        let tree = Tree::from([(ROOT, Directory::new())]);
        Self {
            current: tree.clone(),
            durable: tree,
            pending: Vec::new(),
            modes: BTreeMap::from([(ROOT, 0o755)]),
            known: BTreeMap::new(),
            next: ROOT + 1,
        }
    }
}

impl Names {
    /// The number of the next file or directory.
    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    pub(super) fn find(&self, parent: u64, name: &OsStr) -> Option<u64> {
        self.current.get(&parent)?.get(name).copied()
    }

    /// The permissions, if it is a directory.
    pub(super) fn directory_mode(&self, inode: u64) -> Option<u32> {
        self.modes.get(&inode).copied()
    }

    pub(super) fn set_directory_mode(&mut self, inode: u64, mode: u32) {
        self.modes.insert(inode, mode);
    }

    pub(super) fn list(&self, inode: u64) -> Option<&Directory> {
        self.current.get(&inode)
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.current);
        self.pending.push(change);
    }

    pub(super) fn set(&mut self, parent: u64, name: &OsStr, inode: u64) {
        self.change(Change::Set {
            parent,
            name: name.to_owned(),
            inode,
        });
    }

    /// A directory without names, under no name yet.
    pub(super) fn make_directory(&mut self, inode: u64, mode: u32) {
        self.current.insert(inode, Directory::new());
        self.durable.insert(inode, Directory::new());
        self.modes.insert(inode, mode);
    }

    pub(super) fn remove(&mut self, parent: u64, name: &OsStr, inode: u64) {
        self.change(Change::Remove {
            parent,
            name: name.to_owned(),
            inode,
        });
    }

    pub(super) fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr), inode: u64) {
        self.change(Change::Rename {
            from: (from.0, from.1.to_owned()),
            to: (to.0, to.1.to_owned()),
            inode,
        });
    }

    /// A directory is synced.
    pub(super) fn synced(&mut self, directory: u64) {
        let mut touched = BTreeSet::from([directory]);
        let mut is_durable = vec![false; self.pending.len()];
        for (change, is_durable) in self.pending.iter().zip(&mut is_durable).rev() {
            let parents = change.parents();
            if parents.iter().any(|parent| touched.contains(parent)) {
                touched.extend(parents);
                *is_durable = true;
            }
        }
        let pending = std::mem::take(&mut self.pending);
        for (change, is_durable) in pending.into_iter().zip(is_durable) {
            match is_durable {
                true => drop(change.apply(&mut self.durable)),
                false => self.pending.push(change),
            }
        }
    }

    /// Everything is durable, as after a commit of the journal.
    pub(super) fn all_synced(&mut self) {
        self.pending.clear();
        self.durable = self.current.clone();
    }

    /// The power was lost; how many changes were.
    pub(super) fn lose(&mut self, rng: &mut Rng, keeps: Keeps) -> u64 {
        let pending = std::mem::take(&mut self.pending);
        // As with a journal, up to some change, or by chance each: POSIX says nothing.
        let is_ordered = rng.chance(50);
        let cut = rng.below(pending.len() as u64 + 1);
        let mut lost = 0;
        for (place, change) in pending.iter().enumerate() {
            let stays = match keeps {
                Keeps::Nothing => false,
                Keeps::Everything => true,
                Keeps::Percent(_) if is_ordered => (place as u64) < cut,
                Keeps::Percent(percent) => rng.chance(percent),
            };
            lost += u64::from(!stays || !change.apply(&mut self.durable));
        }
        self.current = self.durable.clone();
        self.known.clear();
        lost
    }

    /// The kernel has a reference more.
    pub(super) fn learn(&mut self, inode: u64) {
        *self.known.entry(inode).or_default() += 1;
    }

    pub(super) fn forget(&mut self, inode: u64, count: u64) {
        if let Some(known) = self.known.get_mut(&inode) {
            *known = known.saturating_sub(count);
            if *known == 0 {
                self.known.remove(&inode);
            }
        }
    }

    /// What a name leads to, may lead to again after a loss, or is in use.
    pub(super) fn in_use(&self) -> BTreeSet<u64> {
        let pending = self.pending.iter().map(Change::inode);
        let roots = pending.chain(self.known.keys().copied()).chain([ROOT]);
        let mut found: BTreeSet<u64> = roots.collect();
        let mut left: Vec<u64> = found.iter().copied().collect();
        while let Some(inode) = left.pop() {
            let trees = [&self.current, &self.durable].into_iter();
            for below in trees.filter_map(|tree| tree.get(&inode)) {
                let new = below.values().filter(|inode| found.insert(**inode));
                left.extend(new);
            }
        }
        found
    }

    /// Forgets directories that are nowhere any more.
    pub(super) fn retain_directories(&mut self, in_use: &BTreeSet<u64>) {
        for tree in [&mut self.current, &mut self.durable] {
            tree.retain(|inode, _| in_use.contains(inode));
        }
        self.modes.retain(|inode, _| in_use.contains(inode));
    }
}
