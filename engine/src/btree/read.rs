//! Reading: one key, and ranges in either direction.

use std::borrow::Cow;
use std::ops::{Bound, ControlFlow};

use super::leaf::Value;
use super::page::Page;
use super::pager::{View, prefetch_cells};
use super::path::MAX_DEPTH;
use super::state::Root;
use crate::backend::{Bounds, Direction, Peek, PeekVisitor, Result, Visitor, is_empty};

/// Where the value of `key` is.
pub(super) fn find<'v>(view: View<'v>, root: &Root, key: &[u8]) -> Result<Option<Value<'v>>> {
    if root.page == 0 {
        return Ok(None);
    }
    let mut page = view.page(root.page)?;
    for _ in 0..MAX_DEPTH {
        if page.is_leaf() {
            let Ok(index) = page.find(key) else {
                return Ok(None);
            };
            return Ok(Some(page.value(index)));
        }
        let child = page.child_page(page.child_for(key));
        view.prefetch_below(page.level(), child);
        page = view.page(child)?;
    }
    Err(view.too_deep(page.number()))
}

/// All of a value.
#[inline]
pub(super) fn whole<'v>(view: View<'v>, value: &Value<'v>) -> Result<Cow<'v, [u8]>> {
    match value {
        Value::Inline(bytes) => Ok(Cow::Borrowed(bytes)),
        Value::Long(long) => view.long_value(long),
    }
}

/// What a leaf has of a value.
#[inline]
pub(super) fn peek<'v>(value: &Value<'v>) -> Peek<'v> {
    match value {
        Value::Inline(bytes) => Peek::whole(*bytes),
        Value::Long(long) => Peek {
            bytes: Cow::Borrowed(long.beginning),
            length: long.len(),
        },
    }
}

/// A way from the root to a leaf that can go on to the neighbouring leaf.
struct Walk<'v> {
    view: View<'v>,
    direction: Direction,
    /// Branches on the way, and the child taken in each.
    branches: Vec<(&'v Page, usize)>,
    /// Leaves until it is looked again whether the next ones are in memory.
    until_look: usize,
}

/// A scan is a long one after so many leaves, and looks whether the next ones
/// are in memory every so many.
const LOOK_LEAVES: usize = 16;
/// Leaves that are then read at a time if not.
const READ_AHEAD_LEAVES: usize = 64;

impl<'v> Walk<'v> {
    /// Goes down from `root` to the leaf where bounds begin.
    fn start(&mut self, root: u64, bounds: Bounds<'_>) -> Result<&'v Page> {
        let direction = self.direction;
        self.descend(root, |page| {
            let (first, last) = page.children_within(bounds);
            match direction {
                Direction::Forward => first,
                Direction::Backward => last,
            }
        })
    }

    fn descend(&mut self, number: u64, choose: impl Fn(&Page) -> usize) -> Result<&'v Page> {
        let mut page = self.view.page(number)?;
        while page.is_branch() {
            if self.branches.len() == MAX_DEPTH {
                return Err(self.view.too_deep(number));
            }
            let index = choose(page);
            self.branches.push((page, index));
            page = self.view.page(page.child_page(index))?;
        }
        Ok(page)
    }

    /// Loads the leaf after this one ahead of time, if it has the same parent.
    fn prefetch_next(&self) {
        if let Some(leaf) = self.siblings().next() {
            self.view.prefetch(leaf);
        }
    }

    /// The leaves after this one that have the same parent.
    fn siblings(&self) -> impl Iterator<Item = u64> {
        let direction = self.direction;
        let last = self.branches.last().copied();
        last.into_iter().flat_map(move |(page, index)| {
            let left = match direction {
                Direction::Forward => page.count() - 1 - index,
                Direction::Backward => index,
            };
            (1..=left).map(move |step| {
                page.child_page(match direction {
                    Direction::Forward => index + step,
                    Direction::Backward => index - step,
                })
            })
        })
    }

    /// Counts a leaf; now and then in a long scan has the disk read many of the
    /// next ones at a time.
    fn read_ahead(&mut self) {
        self.until_look -= 1;
        if self.until_look > 0 {
            return;
        }
        self.until_look = LOOK_LEAVES;
        let view = self.view;
        // The last of them: those before it may have been asked for before.
        let last = self.siblings().take(READ_AHEAD_LEAVES).last();
        if last.is_some_and(|leaf| !view.is_resident(leaf)) {
            let absent = self.siblings().take(READ_AHEAD_LEAVES);
            let absent = absent.filter(|leaf| !view.is_resident(*leaf));
            absent.for_each(|leaf| view.will_need(leaf, 1));
        }
    }

    /// The leaf after this one, in the direction of the walk.
    fn next(&mut self) -> Result<Option<&'v Page>> {
        while let Some((page, index)) = self.branches.pop() {
            let next = match self.direction {
                Direction::Forward if index + 1 < page.count() => index + 1,
                Direction::Backward if index > 0 => index - 1,
                _ => continue,
            };
            self.branches.push((page, next));
            let forward = self.direction == Direction::Forward;
            let edge = |page: &Page| if forward { 0 } else { page.count() - 1 };
            return self.descend(page.child_page(next), edge).map(Some);
        }
        Ok(None)
    }
}

/// Visits the entries within `bounds` in order.
pub(super) fn scan(
    view: View<'_>,
    root: &Root,
    bounds: Bounds<'_>,
    direction: Direction,
    visit: &mut Visitor<'_>,
) -> Result<()> {
    walk(
        view,
        root,
        bounds,
        direction,
        LOOK_LEAVES,
        &mut |key, value| {
            Ok(match value {
                Value::Inline(bytes) => visit(key, bytes),
                Value::Long(long) => visit(key, &view.long_value(long)?),
            })
        },
    )
}

/// The same, with what leaves have of the values; long, if it goes past one leaf.
pub(super) fn peek_scan(
    view: View<'_>,
    root: &Root,
    bounds: Bounds<'_>,
    direction: Direction,
    visit: &mut PeekVisitor<'_>,
) -> Result<()> {
    walk(view, root, bounds, direction, 2, &mut |key, value| {
        Ok(visit(key, peek(value)))
    })
}

fn walk(
    view: View<'_>,
    root: &Root,
    bounds: Bounds<'_>,
    direction: Direction,
    until_look: usize,
    visit: &mut impl FnMut(&[u8], &Value<'_>) -> Result<ControlFlow<()>>,
) -> Result<()> {
    if root.page == 0 || is_empty(bounds) {
        return Ok(());
    }
    let mut walk = Walk {
        view,
        direction,
        branches: Vec::with_capacity(8),
        until_look,
    };
    let mut key = Vec::with_capacity(64);
    let mut leaf = Some(walk.start(root.page, bounds)?);
    let mut bounds = bounds;
    while let Some(page) = leaf {
        walk.prefetch_next();
        walk.read_ahead();
        let range = page.slots_within(bounds);
        prefetch_cells(page, range.clone());
        // Bounds that end inside this leaf end the walk; those where it began
        // have no more to say.
        let ends = match direction {
            Direction::Forward => {
                bounds.0 = Bound::Unbounded;
                range.end < page.count()
            }
            Direction::Backward => {
                bounds.1 = Bound::Unbounded;
                range.start > 0
            }
        };
        key.clear();
        key.extend_from_slice(page.prefix());
        let prefix = key.len();
        let mut visit_slot = |index| -> Result<ControlFlow<()>> {
            let (suffix, value) = page.entry(index);
            key.truncate(prefix);
            key.extend_from_slice(suffix);
            visit(&key, &value)
        };
        let flow = match direction {
            Direction::Forward => visit_all(range, &mut visit_slot)?,
            Direction::Backward => visit_all(range.rev(), &mut visit_slot)?,
        };
        if ends || flow.is_break() {
            return Ok(());
        }
        leaf = walk.next()?;
    }
    Ok(())
}

fn visit_all(
    slots: impl Iterator<Item = usize>,
    visit: &mut impl FnMut(usize) -> Result<ControlFlow<()>>,
) -> Result<ControlFlow<()>> {
    for index in slots {
        if visit(index)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}
