//! The free map of a file with several chunks, written and read back.

use std::path::Path;

use super::super::bitmap::CHUNK_PAGES;
use super::super::free_map::FreeMap;
use super::super::meta::META_PAGES;
use super::super::pager::{BatchToken, Pager};
use super::super::space::{Extent, Leftovers, Space};
use crate::disk::{Disk, OpenMode, SimDisk};

const MAP_BYTES: usize = 1 << 30;

fn pager(disk: &SimDisk, opened: u64) -> Pager {
    let file = disk
        .open(Path::new("/map"), OpenMode::Create)
        .expect("a file");
    Pager::new(file, MAP_BYTES, opened).expect("a map")
}

/// Makes a state with a run of `pages` pages and plans its free map.
fn next(pager: &Pager, space: &mut Space, map: &FreeMap, number: u64, pages: u64) -> FreeMap {
    space.take_for_batch(pager, pages).expect("room");
    space.publish(number, Leftovers::default());
    let plan = map.plan(pager, space, space.live()).expect("a plan");
    plan.write(pager, number, map);
    for page in map.replaced_by(&plan) {
        space.give(Extent::one(page));
    }
    plan
}

#[test]
fn a_map_of_several_chunks_and_directory_pages_reads_back_as_written() {
    let disk = SimDisk::new();
    let writer = pager(&disk, 0);
    writer.grow(64).expect("room");
    let mut space = Space::new(64, META_PAGES, Vec::new(), |_| false);
    let mut map = FreeMap::default();
    for (number, pages) in (1..).zip([10, CHUNK_PAGES, 3, 2 * CHUNK_PAGES, 1, CHUNK_PAGES]) {
        map = next(&writer, &mut space, &map, number, pages);
        for page in META_PAGES..writer.end() {
            let own = map.pages().any(|own| own == page);
            assert_eq!(map.is_used(page), space.is_live(page) || own, "page {page}");
            assert_eq!(map.is_used(page), !space.is_free(page), "page {page}");
        }
    }
    assert!(map.chunks.len() >= 5 && map.directory.len() >= 3);
    // Chunks that no longer change keep their bitmap pages, once the map's own
    // pages have settled in the few chunks with free pages.
    for number in 7..10 {
        map = next(&writer, &mut space, &map, number, 1);
    }
    let before: Vec<u64> = map.chunks.iter().map(|(page, _)| *page).collect();
    map = next(&writer, &mut space, &map, 10, 1);
    let kept = before
        .iter()
        .zip(&map.chunks)
        .filter(|(old, (new, _))| *old == new)
        .count();
    assert!(
        kept >= 2,
        "{kept} of {} bitmap pages were kept",
        before.len()
    );

    writer.file().sync().expect("synced");
    let reader = pager(&disk, 10);
    let token = BatchToken::new(10);
    let view = reader.working(&token);
    let read = FreeMap::load(view, map.directory[0], reader.end()).expect("the map");
    assert_eq!(
        (&read.directory, &read.chunks),
        (&map.directory, &map.chunks)
    );
    assert_eq!(read.live(), space.live());
    // A directory that names more chunks than the file has is refused.
    assert!(FreeMap::load(view, map.directory[0], CHUNK_PAGES).is_err());
    assert!(FreeMap::load(view, map.chunks[0].0, reader.end()).is_err());
}
