//! The free space as a checkpoint leaves it in the file.
//!
//! A directory, a chain of pages, lists the bitmap pages; bitmap page i says of
//! chunk i's pages which are in use: those of the state, and those of the free
//! map itself. A checkpoint writes anew the directory and the bitmap pages that
//! differ from the last ones, to pages that were free.
//!
//! Directory body: next directory page u64 (0 for none), then a bitmap page u64
//! each; the header's count says how many. Bitmap body: one bit per page.

use std::sync::Arc;

use super::bitmap::{CHUNK_PAGES, CHUNK_WORDS, ChunkWords};
use super::page::{BODY_BYTES, Kind, Page};
use super::pager::{BatchToken, Pager, View};
use super::space::{Extent, Space};
use crate::backend::Result;

/// Bitmap pages that a directory page lists: those of 64 GB. Unit tests have
/// chains of directory pages without files of that size.
const DIRECTORY_ENTRIES: usize = if cfg!(test) { 2 } else { BODY_BYTES / 8 - 1 };

/// A free map in the file.
#[derive(Debug, Clone, Default)]
pub(super) struct FreeMap {
    /// Pages of the directory, in the order of the chain.
    pub(super) directory: Vec<u64>,
    /// Per chunk: its bitmap page and what is in it.
    pub(super) chunks: Vec<(u64, Arc<ChunkWords>)>,
}

impl FreeMap {
    /// Reads the free map of a file of `end` pages, whose directory starts at
    /// page `directory`; 0 for the free map of an empty store.
    pub(super) fn load(view: View<'_>, directory: u64, end: u64) -> Result<Self> {
        let mut map = Self::default();
        let wanted = end.div_ceil(CHUNK_PAGES) as usize;
        let mut next = directory;
        while next != 0 {
            let page = view.page(next)?;
            let count = page.count();
            if page.kind() != Some(Kind::Directory)
                || count > DIRECTORY_ENTRIES
                || count == 0
                || map.chunks.len() + count > wanted
            {
                return Err(view.damaged(next, "is no part of the free-space directory"));
            }
            map.directory.push(next);
            // All at a time: they may lie anywhere, and none may be in memory.
            (1..=count).for_each(|entry| view.will_need(word(page, entry), 1));
            for entry in 1..=count {
                let number = word(page, entry);
                let bitmap = view.page(number)?;
                if bitmap.kind() != Some(Kind::Bitmap) {
                    return Err(view.damaged(number, "is no bitmap page"));
                }
                let words = std::array::from_fn(|index| word(bitmap, index));
                map.chunks.push((number, Arc::new(words)));
            }
            next = word(page, 0);
        }
        Ok(map)
    }

    /// Whether a page is in use.
    pub(super) fn is_used(&self, page: u64) -> bool {
        let chunk = self.chunks.get((page / CHUNK_PAGES) as usize);
        chunk.is_some_and(|(_, words)| super::space::has(words, page))
    }

    /// The pages that the map itself takes.
    pub(super) fn pages(&self) -> impl Iterator<Item = u64> {
        let bitmaps = self.chunks.iter().map(|(page, _)| *page);
        self.directory.iter().copied().chain(bitmaps)
    }

    /// The pages of the state: those in use but for the map's own.
    pub(super) fn live(&self) -> Vec<Arc<ChunkWords>> {
        let mut live: Vec<_> = self
            .chunks
            .iter()
            .map(|(_, words)| Arc::clone(words))
            .collect();
        for page in self.pages() {
            set(&mut live, page, false);
        }
        live
    }

    /// Plans the map that follows this one: `live` is the state's. Takes the
    /// pages that it needs; what it takes changes the bitmaps, which may take
    /// more pages, until that comes to rest.
    pub(super) fn plan(
        &self,
        pager: &Pager,
        space: &mut Space,
        mut live: Vec<Arc<ChunkWords>>,
    ) -> Result<Self> {
        let mut taken = Vec::new();
        let plan = self.try_plan(pager, space, &mut live, &mut taken);
        if plan.is_err() {
            for page in taken {
                space.give(Extent::one(page));
            }
        }
        plan
    }

    fn try_plan(
        &self,
        pager: &Pager,
        space: &mut Space,
        used: &mut Vec<Arc<ChunkWords>>,
        taken: &mut Vec<u64>,
    ) -> Result<Self> {
        let cut = space.vacuum_cut();
        let mut take = |used: &mut Vec<Arc<ChunkWords>>| -> Result<u64> {
            let page = space.take(pager, 1)?.page;
            taken.push(page);
            let chunks = pager.end().div_ceil(CHUNK_PAGES) as usize;
            used.resize(chunks.max(used.len()), Arc::new([0; CHUNK_WORDS]));
            set(used, page, true);
            Ok(page)
        };
        // After a vacuum there may be fewer chunks than before.
        let chunks = pager.end().div_ceil(CHUNK_PAGES) as usize;
        used.truncate(chunks);
        let kept = self.chunks.iter().take(chunks);
        let mut bitmaps: Vec<u64> = kept.map(|(page, _)| *page).collect();
        for page in &bitmaps {
            set(used, *page, true);
        }
        let mut directory = Vec::new();
        let mut index = 0;
        let mut changed = false;
        // Round and round over the chunks, until a round changes nothing.
        loop {
            while directory.len() * DIRECTORY_ENTRIES < used.len() {
                directory.push(take(used)?);
                changed = true;
            }
            bitmaps.resize(used.len().max(bitmaps.len()), 0);
            if index == bitmaps.len() {
                if !changed {
                    break;
                }
                (index, changed) = (0, false);
            }
            if self.is_stale(index, bitmaps[index], &used[index], cut) {
                if bitmaps[index] != 0 {
                    set(used, bitmaps[index], false);
                }
                bitmaps[index] = take(used)?;
                changed = true;
            }
            index += 1;
        }
        let chunks = bitmaps.into_iter().zip(used.iter().cloned()).collect();
        Ok(Self { directory, chunks })
    }

    /// Whether chunk `index` needs a new bitmap page: `bitmap` is the one planned
    /// for it, which so far is the present one, or 0 for none, or a new one. A
    /// vacuum wants those beyond its cut moved.
    fn is_stale(&self, index: usize, bitmap: u64, used: &Arc<ChunkWords>, cut: u64) -> bool {
        match self.chunks.get(index) {
            Some((page, words)) => bitmap == *page && (words != used || *page >= cut),
            None => bitmap == 0,
        }
    }

    /// Writes the pages of this map that `old` does not have.
    pub(super) fn write(&self, pager: &Pager, birth: u64, old: &Self) {
        let mut token = BatchToken::new(birth);
        for (index, (number, words)) in self.chunks.iter().enumerate() {
            if old.chunks.get(index).is_none_or(|(page, _)| page != number) {
                let page = pager.adopt(&mut token, *number);
                page.format(Kind::Bitmap, 0);
                put_words(page, words.iter().copied());
                page.seal(page.checksum());
            }
        }
        let parts = self.chunks.chunks(DIRECTORY_ENTRIES);
        for (index, (number, part)) in self.directory.iter().zip(parts).enumerate() {
            let page = pager.adopt(&mut token, *number);
            page.format(Kind::Directory, 0);
            page.set_count(part.len());
            let next = self.directory.get(index + 1).copied().unwrap_or(0);
            let entries = part.iter().map(|(page, _)| *page);
            put_words(page, std::iter::once(next).chain(entries));
            page.seal(page.checksum());
        }
    }

    /// The pages of `self` that `next` does without.
    pub(super) fn replaced_by(&self, next: &Self) -> Vec<u64> {
        let kept = |(index, (page, _)): (usize, &(u64, _))| {
            let same = next
                .chunks
                .get(index)
                .is_some_and(|(other, _)| other == page);
            (!same).then_some(*page)
        };
        let bitmaps = self.chunks.iter().enumerate().filter_map(kept);
        self.directory.iter().copied().chain(bitmaps).collect()
    }
}

/// What a page of the directory says: the next one, and its bitmap pages.
pub(super) fn directory_of(page: &Page) -> (u64, Vec<u64>) {
    let count = page.count().min(DIRECTORY_ENTRIES);
    (
        word(page, 0),
        (1..=count).map(|entry| word(page, entry)).collect(),
    )
}

/// Whether a bitmap page has the bit of its chunk's page `index`.
pub(super) fn is_bit_set(bitmap: &Page, index: u64) -> bool {
    word(bitmap, (index / 64) as usize) >> (index % 64) & 1 == 1
}

fn word(page: &Page, index: usize) -> u64 {
    let words = page.body().as_chunks::<8>().0;
    words.get(index).map_or(0, |word| u64::from_le_bytes(*word))
}

fn put_words(page: &mut Page, words: impl Iterator<Item = u64>) {
    let body = page.body_mut();
    body.fill(0);
    for (field, word) in body.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *field = word.to_le_bytes();
    }
}

fn set(chunks: &mut [Arc<ChunkWords>], page: u64, used: bool) {
    let Some(chunk) = chunks.get_mut((page / CHUNK_PAGES) as usize) else {
        return;
    };
    let chunk = Arc::make_mut(chunk);
    let at = page % CHUNK_PAGES;
    let (word, bit) = ((at / 64) as usize, 1 << (at % 64));
    if used {
        chunk[word] |= bit;
    } else {
        chunk[word] &= !bit;
    }
}
