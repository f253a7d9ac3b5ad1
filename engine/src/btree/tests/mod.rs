//! Tests of the parts; `engine/tests/btree` tests the whole.

mod free_map;
mod golden;
#[cfg(loom)]
mod models;
mod pages;
mod readers;

use super::page::{Kind, Page};
use super::slotted::{KeyParts, NewCell};
use super::split::try_insert;

/// An empty leaf with a prefix.
fn leaf(prefix: &[u8]) -> Page {
    let mut page = Page::zeroed();
    page.format(Kind::Leaf, 0);
    page.set_prefix((prefix, &[]));
    page
}

fn insert(page: &mut Page, key: &[u8], value: &[u8]) -> bool {
    let cell = NewCell {
        key,
        payload: value,
        overflow: false,
    };
    match page.find(key) {
        Ok(_) => false,
        Err(index) => try_insert(page, index, &cell),
    }
}

fn whole(key: KeyParts<'_>) -> Vec<u8> {
    super::slotted::joined(key)
}
