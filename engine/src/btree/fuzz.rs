//! What the fuzz target `page` runs on any bytes: decoding never panics, and
//! what decodes can be used.

use std::ops::Bound;

use super::leaf::LongValue;
use super::meta::{Found, Meta};
use super::page::{self, PAGE_BYTES, Page, validate};

/// Decodes `data` as pages and as a meta page; whether its structure is valid.
pub fn decode(data: &[u8]) -> bool {
    let number = data.get(24..32).and_then(|field| field.try_into().ok());
    let number = number.map_or(0, u64::from_le_bytes);
    let _ = page::decode(data, number);
    let mut bytes = [0; PAGE_BYTES];
    let length = data.len().min(PAGE_BYTES);
    bytes[..length].copy_from_slice(&data[..length]);
    if let Found::Valid(meta) = Meta::decode(&bytes, u64::from(bytes[0])) {
        assert_eq!(
            Meta::decode(&meta.encode(), meta.page()),
            Found::Valid(meta)
        );
    }
    // Without its checksum, which random bytes never have.
    let mut page = Page::parse(&bytes);
    let valid = validate(&page).is_ok();
    if valid {
        exercise(&mut page, &data[..length.min(20)]);
    }
    valid
}

/// Does with a page that validated what is done with pages.
fn exercise(page: &mut Page, key: &[u8]) {
    if page.is_branch() {
        let index = page.child_for(key);
        page.child(index);
        page.children_within((Bound::Unbounded, Bound::Excluded(key)));
    } else if page.is_leaf() {
        let found = page.find(key);
        assert!(found.unwrap_or_else(|index| index) <= page.count());
        page.slots_within((Bound::Included(key), Bound::Unbounded));
        let bytes: usize = (0..page.count())
            .map(|index| page.entry(index).0.len())
            .sum();
        assert!(bytes <= PAGE_BYTES);
        for long in page.long_values() {
            assert_eq!(
                long.before().len() + long.copied().len(),
                long.beginning.len()
            );
            assert_eq!(LongValue::decode(&long.encode(&[])), long);
        }
    } else {
        return;
    }
    page.own_sums();
    let (used, prefix_len) = (page.used(), page.prefix_len());
    page.rebuild(prefix_len);
    assert_eq!(page.used(), used);
    page.remove_cells(0..page.count() / 2);
    assert!(page.count() == 0 || validate(page).is_ok());
}
