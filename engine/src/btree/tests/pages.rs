//! Pages against a sorted map, and pages that were tampered with.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::super::branch::Child;
use super::super::fuzz::decode;
use super::super::page::{BODY_BYTES, HEADER_BYTES, Kind, PAGE_BYTES, Page, validate};
use super::{insert, leaf, whole};
use crate::backend::Sums;
use crate::backend::conformance::Random;

fn key(random: &mut Random, prefix: &[u8]) -> Vec<u8> {
    // Heads that tie, keys that are prefixes of others, zero bytes.
    let mut key = prefix.to_vec();
    let alphabet = [0, 0, b'a', b'b', 255];
    for _ in 0..random.below(8) {
        key.push(alphabet[random.below(5)]);
    }
    key
}

fn verify(page: &Page, model: &BTreeMap<Vec<u8>, Vec<u8>>) {
    if model.is_empty() {
        return;
    }
    validate(page).expect("a valid page");
    let entries =
        (0..page.count()).map(|index| (whole(page.key_parts(index)), page.payload(index).to_vec()));
    assert!(
        entries.eq(model
            .iter()
            .map(|(key, value)| (key.clone(), value.clone())))
    );
}

#[test]
fn a_leaf_finds_inserts_and_removes_as_a_sorted_map() {
    for seed in 0..40 {
        let mut random = Random::new(seed);
        let prefix = [&b""[..], b"p", b"a/long/prefix/of/keys/"][random.below(3)];
        let mut page = leaf(prefix);
        let mut model = BTreeMap::new();
        for _ in 0..400 {
            // Now and then a key that does not share the prefix.
            let stranger = random.below(60) == 0;
            let key = key(&mut random, if stranger { b"" } else { prefix });
            let place = page.find(&key);
            assert_eq!(place.is_ok(), model.contains_key(&key), "seed {seed}");
            let before = model.range::<[u8], _>((Bound::Unbounded, Bound::Excluded(&key[..])));
            assert_eq!(
                place.unwrap_or_else(|index| index),
                before.count(),
                "seed {seed}"
            );
            match place {
                Ok(index) if random.below(3) == 0 => {
                    page.remove_cell(index);
                    model.remove(&key);
                }
                Ok(_) => {}
                Err(_) => {
                    let value = vec![random.number() as u8; random.below(60)];
                    let used = page.used();
                    if insert(&mut page, &key, &value) {
                        model.insert(key, value);
                    } else {
                        assert!(used + 10 + key.len() + value.len() > BODY_BYTES || stranger);
                    }
                }
            }
            verify(&page, &model);
        }
    }
}

#[test]
fn used_with_another_prefix_is_what_a_rebuild_uses() {
    for prefix_len in 0..=7 {
        let mut page = leaf(b"prefix/");
        for number in 0..50_u32 {
            let key = format!("prefix/{number:04}");
            assert!(insert(&mut page, key.as_bytes(), &[1; 9]));
        }
        page.remove_cells(10..20);
        let expected = page.used_with_prefix(prefix_len);
        page.rebuild(prefix_len);
        assert_eq!((page.used(), page.garbage()), (expected, 0));
        validate(&page).expect("a valid page");
    }
}

#[test]
fn a_branch_finds_the_child_and_loses_its_first_key() {
    let mut page = Page::zeroed();
    page.format(Kind::Branch, 1);
    page.set_prefix((b"k", &[]));
    for number in 0..60_u64 {
        let child = Child {
            page: number + 10,
            has_overflow: false,
            sums: Sums {
                entries: 1,
                bytes: 2,
            },
        };
        let key = format!("{number:03}");
        let suffix = if number == 0 { &[][..] } else { key.as_bytes() };
        page.insert_cell(number as usize, (suffix, &[]), &child.encode(), false);
    }
    validate(&page).expect("a valid page");
    let cases: [(&[u8], usize); 6] = [
        (b"", 0),
        (b"a", 0),
        (b"k", 0),
        (b"k001", 1),
        (b"k0015", 1),
        (b"z", 59),
    ];
    for (key, child) in cases {
        assert_eq!(page.child_for(key), child, "{key:?}");
    }
    page.remove_cells(0..2);
    validate(&page).expect("a valid page");
    assert_eq!(
        (page.count(), page.child_page(0), page.suffix_len(0)),
        (58, 12, 0)
    );
    assert_eq!((page.child_for(b"k002"), page.child_for(b"k003")), (0, 1));
    assert_eq!(
        page.own_sums(),
        Sums {
            entries: 58,
            bytes: 116
        }
    );
}

/// What passes `validate` must be safe to use, whatever else is in it.
#[test]
fn using_a_tampered_page_that_validates_never_panics() {
    let mut random = Random::new(3);
    let mut used = 0;
    for _ in 0..30_000 {
        let mut page = leaf([&b""[..], b"some/prefix/"][random.below(2)]);
        let prefix = whole((page.prefix(), &[]));
        for _ in 0..random.below(12) + 1 {
            let key = key(&mut random, &prefix);
            insert(&mut page, &key, &[5; 30]);
        }
        for _ in 0..=random.below(3) {
            let limit = [HEADER_BYTES, 120, PAGE_BYTES - 4][random.below(3)];
            let at = 4 + random.below(limit);
            page.span_mut(at..at + 1)[0] = random.number() as u8;
        }
        if validate(&page).is_err() {
            continue;
        }
        used += 1;
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(page.span(4..PAGE_BYTES));
        assert!(decode(&bytes));
    }
    assert!(used > 1000, "{used} tampered pages validated");
}
