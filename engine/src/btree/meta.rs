//! The two meta pages: where a store begins.
//!
//! Pages 0 and 1 are written in turn, one per checkpoint, and the newer valid
//! one wins. A meta page's content fits its first 512 bytes, a sector, which
//! disks write whole or not at all.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic |
//! | 8 | 4 | format version |
//! | 12 | 4 | bytes of a page |
//! | 16 | 8 | sequence number; its parity says which of the two pages it is |
//! | 24 | 8 | number of the state |
//! | 32 | 16 | applied term, applied index |
//! | 48 | 8 | pages of the file |
//! | 56 | 8 | first page of the free-space directory, 0 for none |
//! | 64 | 192 | per tree: root page, entries, bytes |
//! | 508 | 4 | crc32c of the bytes before |

use super::page::PAGE_BYTES;
use super::state::{Root, State};
use crate::backend::{Applied, MAX_TREES, Sums};

/// Pages at the start of the file that are not in the free-space bitmap's care.
pub(super) const META_PAGES: u64 = 2;

const MAGIC: [u8; 8] = *b"VARVEBT\0";
const VERSION: u32 = 2;
const SECTOR_BYTES: usize = 512;
const ROOTS: usize = 64;
const ROOT_BYTES: usize = 24;
const CRC: usize = SECTOR_BYTES - 4;

const _: () = assert!(ROOTS + MAX_TREES * ROOT_BYTES <= CRC);

/// What a meta page says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Meta {
    pub(super) sequence: u64,
    pub(super) state: State,
    /// Pages of the file.
    pub(super) end: u64,
    /// First page of the free-space directory.
    pub(super) directory: u64,
}

/// What was found in a meta page's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    Valid(Box<Meta>),
    /// Zeros only: never written.
    Blank,
    /// Neither: what is wrong with it.
    Invalid(String),
    /// Another program's file, or another version's: what was found.
    Foreign(String),
}

impl Meta {
    /// The page that this belongs to.
    pub(super) fn page(&self) -> u64 {
        self.sequence % META_PAGES
    }

    pub(super) fn encode(&self) -> [u8; PAGE_BYTES] {
        let mut bytes = [0; PAGE_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&(PAGE_BYTES as u32).to_le_bytes());
        let state = &self.state;
        let fixed = [
            self.sequence,
            state.number,
            state.applied.term,
            state.applied.index,
            self.end,
            self.directory,
        ];
        let roots = state
            .roots
            .iter()
            .flat_map(|root| [root.page, root.sums.entries, root.sums.bytes]);
        for (field, value) in bytes[16..]
            .as_chunks_mut::<8>()
            .0
            .iter_mut()
            .zip(fixed.into_iter().chain(roots))
        {
            *field = value.to_le_bytes();
        }
        let crc = crc32c::crc32c(&bytes[..CRC]);
        bytes[CRC..SECTOR_BYTES].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; PAGE_BYTES], page: u64) -> Found {
        if bytes.iter().all(|byte| *byte == 0) {
            return Found::Blank;
        }
        let u32_at = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let crc = crc32c::crc32c(&bytes[..CRC]);
        if crc != u32_at(CRC) {
            // Magic first, so that a foreign file is not called a damaged one.
            return if bytes[..8] == MAGIC {
                Found::Invalid(format!(
                    "checksum is {crc:08x}, the page says {:08x}",
                    u32_at(CRC)
                ))
            } else {
                Found::Foreign("it does not start as a store of this engine does".to_owned())
            };
        }
        if bytes[..8] != MAGIC {
            return Found::Foreign("it does not start as a store of this engine does".to_owned());
        }
        if u32_at(8) != VERSION {
            return Found::Foreign(format!(
                "it has format version {}, this program reads version {VERSION}",
                u32_at(8)
            ));
        }
        if u32_at(12) as usize != PAGE_BYTES {
            return Found::Foreign(format!(
                "it has pages of {} bytes, this program reads pages of {PAGE_BYTES}",
                u32_at(12)
            ));
        }
        let mut words = bytes[16..CRC]
            .as_chunks::<8>()
            .0
            .iter()
            .map(|word| u64::from_le_bytes(*word));
        let mut next = || words.next().unwrap_or(0);
        let mut meta = Meta {
            sequence: next(),
            state: State {
                number: next(),
                applied: Applied {
                    term: next(),
                    index: next(),
                },
                ..State::default()
            },
            end: next(),
            directory: next(),
        };
        for root in &mut meta.state.roots {
            *root = Root {
                page: next(),
                sums: Sums {
                    entries: next(),
                    bytes: next(),
                },
            };
        }
        if meta.page() == page {
            Found::Valid(Box::new(meta))
        } else {
            Found::Invalid(format!(
                "has sequence number {}, which is the other page's",
                meta.sequence
            ))
        }
    }
}
