//! Which pages are free, in memory: one bit per page, lowest free page first.
//!
//! Taking the lowest keeps the file's end empty, which is where a vacuum cuts.
//! The bits are cut into chunks of as many as one bitmap page of the file
//! holds. A count per chunk and two hints keep the search for a free page
//! from going over full chunks and words again and again.

use super::page::BODY_BYTES;

/// Words of a chunk: the body of one bitmap page.
pub(super) const CHUNK_WORDS: usize = BODY_BYTES / 8;
/// Pages that a chunk describes.
pub(super) const CHUNK_PAGES: u64 = CHUNK_WORDS as u64 * 64;

/// The words of a chunk.
pub(super) type ChunkWords = [u64; CHUNK_WORDS];

/// A set of free pages.
#[derive(Debug, Clone, Default)]
pub(super) struct Bitmap {
    /// A set bit is a free page.
    words: Vec<u64>,
    chunks: Vec<Chunk>,
    /// No chunk below has a free page.
    lowest_chunk: usize,
    /// Where the last run was found.
    run_cursor: u64,
    count: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Chunk {
    free: u32,
    /// No word of the chunk below this one has a free page.
    lowest_word: u32,
}

impl Bitmap {
    /// Makes room for pages below `end`; new ones are not free.
    pub(super) fn grow(&mut self, end: u64) {
        let chunks = end.div_ceil(CHUNK_PAGES) as usize;
        if chunks > self.chunks.len() {
            self.chunks.resize(chunks, Chunk::default());
            self.words.resize(chunks * CHUNK_WORDS, 0);
        }
    }

    /// How many pages are free.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn contains(&self, page: u64) -> bool {
        let word = self.words.get((page / 64) as usize);
        word.is_some_and(|word| word >> (page % 64) & 1 == 1)
    }

    /// Adds a page; `false` if it was free already.
    pub(super) fn insert(&mut self, page: u64) -> bool {
        let (word, bit) = ((page / 64) as usize, 1 << (page % 64));
        if self.words[word] & bit != 0 {
            return false;
        }
        self.words[word] |= bit;
        let index = word / CHUNK_WORDS;
        let chunk = &mut self.chunks[index];
        chunk.free += 1;
        chunk.lowest_word = chunk.lowest_word.min((word % CHUNK_WORDS) as u32);
        self.lowest_chunk = self.lowest_chunk.min(index);
        self.count += 1;
        true
    }

    fn remove(&mut self, page: u64) {
        let word = (page / 64) as usize;
        self.words[word] &= !(1 << (page % 64));
        self.chunks[word / CHUNK_WORDS].free -= 1;
        self.count -= 1;
    }

    /// Takes the lowest free page.
    pub(super) fn take(&mut self) -> Option<u64> {
        while self.lowest_chunk < self.chunks.len() {
            let index = self.lowest_chunk;
            let chunk = &mut self.chunks[index];
            if chunk.free == 0 {
                self.lowest_chunk += 1;
                continue;
            }
            let words = &self.words[index * CHUNK_WORDS..(index + 1) * CHUNK_WORDS];
            let from = chunk.lowest_word as usize;
            let word = from + words[from..].iter().position(|word| *word != 0)?;
            chunk.lowest_word = word as u32;
            let at = (index * CHUNK_WORDS + word) as u64 * 64;
            let page = at + u64::from(words[word].trailing_zeros());
            self.remove(page);
            return Some(page);
        }
        None
    }

    /// Takes `pages` free pages in a row: next fit, once around.
    pub(super) fn take_run(&mut self, pages: u64) -> Option<u64> {
        if self.count < pages {
            return None;
        }
        let limit = self.words.len() as u64 * 64;
        let start = self
            .find_run(self.run_cursor, limit, pages)
            .or_else(|| self.find_run(0, limit.min(self.run_cursor + pages), pages))?;
        for page in start..start + pages {
            self.remove(page);
        }
        self.run_cursor = start + pages;
        Some(start)
    }

    /// Whether a page before `limit` is free.
    pub(super) fn has_before(&self, limit: u64) -> bool {
        self.find_run(0, limit.min(self.words.len() as u64 * 64), 1)
            .is_some()
    }

    /// Takes the first `pages` free pages in a row that end before `limit`.
    pub(super) fn take_run_below(&mut self, pages: u64, limit: u64) -> Option<u64> {
        let limit = limit.min(self.words.len() as u64 * 64);
        let start = self.find_run(0, limit, pages)?;
        for page in start..start + pages {
            self.remove(page);
        }
        Some(start)
    }

    /// The page after the last one below `end` that is not free.
    pub(super) fn last_used(&self, mut end: u64) -> u64 {
        while end > 0 && self.contains(end - 1) {
            // A whole word at a time where it is full of free pages.
            let word = self.words[((end - 1) / 64) as usize];
            end = if end.is_multiple_of(64) && word == u64::MAX {
                end - 64
            } else {
                end - 1
            };
        }
        end
    }

    /// Takes the free pages `from..to` out for good.
    pub(super) fn cut(&mut self, from: u64, to: u64) {
        for page in from..to {
            self.remove(page);
        }
        self.run_cursor = self.run_cursor.min(from);
    }

    fn find_run(&self, mut from: u64, limit: u64, pages: u64) -> Option<u64> {
        while from + pages <= limit {
            let word = self.words[(from / 64) as usize] >> (from % 64);
            if word == 0 {
                from = (from / 64 + 1) * 64;
                continue;
            }
            from += u64::from(word.trailing_zeros());
            if from + pages > limit {
                break;
            }
            let run = self.run_at(from, pages);
            if run >= pages {
                return (from + pages <= limit).then_some(from);
            }
            from += run;
        }
        None
    }

    /// How many pages in a row from `from` on are free, counting up to `pages`.
    fn run_at(&self, from: u64, pages: u64) -> u64 {
        let mut run = 0;
        while run < pages {
            let at = from + run;
            let Some(word) = self.words.get((at / 64) as usize) else {
                break;
            };
            let ones = u64::from((word >> (at % 64)).trailing_ones());
            run += ones;
            if ones < 64 - at % 64 {
                break;
            }
        }
        run
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pages: impl IntoIterator<Item = u64>) -> Bitmap {
        let mut bitmap = Bitmap::default();
        bitmap.grow(3 * CHUNK_PAGES);
        for page in pages {
            assert!(bitmap.insert(page));
        }
        bitmap
    }

    #[test]
    fn takes_the_lowest_page_across_chunks() {
        let far = 2 * CHUNK_PAGES + 70;
        let mut bitmap = with([far, 64, 3]);
        assert_eq!(bitmap.take(), Some(3));
        assert_eq!(bitmap.take(), Some(64));
        assert!(bitmap.insert(5));
        assert!(!bitmap.insert(5));
        assert_eq!(bitmap.take(), Some(5));
        assert_eq!(bitmap.take(), Some(far));
        assert_eq!((bitmap.take(), bitmap.count()), (None, 0));
    }

    #[test]
    fn finds_runs_across_words_and_wraps_around() {
        let mut bitmap = with((60..70).chain(100..103).chain(128..256));
        assert_eq!(bitmap.take_run(10), Some(60));
        assert_eq!(bitmap.take_run(128), Some(128));
        assert_eq!(bitmap.take_run(4), None);
        assert_eq!(bitmap.take_run(3), Some(100));
        assert_eq!(bitmap.count(), 0);
    }

    #[test]
    fn the_end_is_cut_off_behind_the_last_page_in_use() {
        let end = 3 * CHUNK_PAGES;
        for used in [0, 1, 63, 64, 65, 1000, end - 1] {
            let mut bitmap = with((0..end).filter(|page| *page != used));
            assert_eq!(bitmap.last_used(end), used + 1);
            bitmap.cut(used + 1, end);
            assert_eq!(
                (bitmap.count(), bitmap.last_used(used + 1)),
                (used, used + 1)
            );
            assert!(!bitmap.contains(end - 1));
        }
        assert_eq!(with(0..end).last_used(end), 0);
    }

    #[test]
    fn a_run_is_taken_below_a_limit_only() {
        let mut bitmap = with((10..13).chain(100..120));
        assert_eq!(bitmap.take_run_below(4, 103), None);
        assert_eq!(bitmap.take_run_below(4, 104), Some(100));
        assert_eq!(bitmap.take_run_below(3, 50), Some(10));
    }

    #[test]
    fn a_run_ends_with_the_last_page() {
        let end = 3 * CHUNK_PAGES;
        let mut bitmap = with(end - 5..end);
        assert_eq!(bitmap.take_run(6), None);
        assert_eq!(bitmap.take_run(5), Some(end - 5));
    }
}
