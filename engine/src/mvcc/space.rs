//! How much space the keys under a prefix take, by path component.
//!
//! A key's *directories* are its parts up to each separator behind the prefix. The
//! lines are the directories down to some depth, and the keys that end before
//! another separator, each directory followed by what is in it. A line costs one
//! seek and one look at the branches' sums: what lies in a directory that is not
//! gone into is passed over.

use std::ops::{Bound, ControlFlow};

use varve_types::KeyRange;

use super::LATEST;
use super::error::Result;
use super::history::range_sums;
use super::view::{LiveSums, View};
use crate::backend::{Direction, Read};

/// Which lines are asked for.
#[derive(Debug, Clone, Copy)]
pub struct SpaceQuery<'a> {
    /// What the keys begin with.
    pub prefix: &'a [u8],
    /// What ends a path component; nothing does if it is empty.
    pub separator: &'a [u8],
    /// How many components deep; 0 is taken as 1.
    pub depth: usize,
    /// The line to go on behind: its name, and whether it is a directory.
    pub after: Option<(&'a [u8], bool)>,
}

/// A directory or a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpaceLine {
    /// The key, or the directory with the separator that ends it.
    pub name: Vec<u8>,
    /// Whether it is a directory.
    pub is_directory: bool,
    /// What is in it.
    pub sums: LiveSums,
}

impl SpaceQuery<'_> {
    /// How long the directories of `key` are, the outermost first, down to the depth.
    fn directories<'k>(&'k self, key: &'k [u8]) -> impl Iterator<Item = usize> + 'k {
        let separator = self.separator;
        let mut at = self.prefix.len();
        let next = move || {
            let rest = key.get(at..)?;
            let mut windows = rest.windows(separator.len().max(1));
            let found = windows.position(|window| window == separator)?;
            at += found + separator.len();
            Some(at)
        };
        std::iter::from_fn(next).take(self.depth.max(1))
    }
}

impl View {
    /// Visits the lines of `query` until the visitor breaks; O(log n) each on the B+tree.
    pub fn space(
        &self,
        query: &SpaceQuery<'_>,
        visit: &mut dyn FnMut(SpaceLine) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut after = query.after.map(|(name, kind)| (name.to_vec(), kind));
        while let Some(line) = next_line(self.read(), query, after.as_ref())? {
            after = Some((line.name.clone(), line.is_directory));
            if visit(line).is_break() {
                break;
            }
        }
        Ok(())
    }
}

fn next_line(
    read: &dyn Read,
    query: &SpaceQuery<'_>,
    after: Option<&(Vec<u8>, bool)>,
) -> Result<Option<SpaceLine>> {
    let Some(key) = next_key(read, query, after)? else {
        return Ok(None);
    };
    // A directory that the last line is, or is in, had its line.
    let is_new = |end: &usize| after.is_none_or(|(name, _)| !name.starts_with(&key[..*end]));
    let directory = query.directories(&key).find(is_new);
    let range_end;
    let (name, range) = match directory {
        Some(end) => {
            let name = &key[..end];
            range_end = KeyRange::prefix_end(name);
            (name, KeyRange::new(name, &range_end))
        }
        None => (&key[..], KeyRange::One(&key)),
    };
    let sums = range_sums(read, LATEST, range)?;
    Ok(Some(SpaceLine {
        name: name.to_vec(),
        is_directory: directory.is_some(),
        sums: LiveSums {
            keys: sums.entries,
            bytes: sums.bytes,
        },
    }))
}

/// The first key that may have a line behind `after`.
fn next_key(
    read: &dyn Read,
    query: &SpaceQuery<'_>,
    after: Option<&(Vec<u8>, bool)>,
) -> Result<Option<Vec<u8>>> {
    let prefix_end = KeyRange::prefix_end(query.prefix);
    let end = match &prefix_end[..] {
        [0] => Bound::Unbounded,
        end => Bound::Excluded(end),
    };
    let passed_end;
    let start = match after {
        None => Bound::Included(query.prefix),
        Some((key, false)) => Bound::Excluded(&key[..]),
        Some((name, true)) if query.directories(name).count() < query.depth.max(1) => {
            Bound::Included(&name[..])
        }
        Some((name, true)) => {
            passed_end = KeyRange::prefix_end(name);
            if passed_end == [0] {
                return Ok(None); // nothing sorts behind it
            }
            Bound::Included(&passed_end[..])
        }
    };
    let mut found = None;
    if !crate::backend::is_empty((start, end)) {
        let visit = &mut |key: &[u8], _: &[u8]| {
            found = Some(key.to_vec());
            ControlFlow::Break(())
        };
        read.scan(LATEST, (start, end), Direction::Forward, visit)?;
    }
    // A name from outside of the prefix may have led elsewhere.
    Ok(found.filter(|key| key.starts_with(query.prefix)))
}
