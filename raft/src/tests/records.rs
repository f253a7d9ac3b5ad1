//! The bytes of records.

use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType, HardState};
use varve_engine::wal::Group;

use super::membership;
use crate::record::{self, Marker, Record};

fn only_record(group: &Group) -> (u8, Vec<u8>) {
    let mut records = group.iter();
    let (_, kind, payload) = records.next().unwrap();
    assert!(records.next().is_none());
    (kind, payload.to_vec())
}

#[test]
fn an_entry_is_golden_and_comes_back() {
    let mut entry = Entry {
        index: 0x0102,
        term: 3,
        data: Bytes::from_static(b"data"),
        ..Entry::default()
    };
    entry.set_entry_type(EntryType::EntryConfChangeV2);
    let mut group = Group::new();
    record::push_entry(&mut group, &entry).unwrap();
    let (kind, payload) = only_record(&group);
    assert_eq!(kind, 1);
    assert_eq!(
        payload,
        [
            2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, b'd', b'a',
            b't', b'a'
        ]
    );
    assert_eq!(
        record::decode(0, kind, payload.into()).unwrap(),
        Record::Entry(entry)
    );
}

#[test]
fn a_hard_state_is_golden_and_comes_back() {
    let state = HardState {
        term: 1,
        vote: 2,
        commit: 3,
        ..HardState::default()
    };
    let mut group = Group::new();
    record::push_hard_state(&mut group, &state).unwrap();
    let (kind, payload) = only_record(&group);
    assert_eq!(kind, 2);
    let expected: Vec<u8> = [1u64, 2, 3]
        .iter()
        .flat_map(|field| field.to_le_bytes())
        .collect();
    assert_eq!(payload, expected);
    assert_eq!(
        record::decode(0, kind, payload.into()).unwrap(),
        Record::HardState(state)
    );
}

#[test]
fn a_marker_is_golden_and_comes_back() {
    let marker = Marker {
        index: 9,
        term: 8,
        store: 7,
        reset: true,
        membership: membership(),
    };
    let mut group = Group::new();
    record::push_marker(&mut group, &marker).unwrap();
    let (kind, payload) = only_record(&group);
    assert_eq!(kind, 3);
    let mut expected: Vec<u8> = [9u64, 8, 7, 1]
        .iter()
        .flat_map(|f| f.to_le_bytes())
        .collect();
    marker.membership.encode(&mut expected);
    assert_eq!(payload, expected);
    assert_eq!(
        record::decode(0, kind, payload.into()).unwrap(),
        Record::Marker(marker)
    );
}

#[test]
fn other_records_are_refused_with_their_place() {
    for (kind, payload) in [
        (9, vec![]),
        (1, vec![0; 23]),
        (2, vec![0; 25]),
        (3, vec![0; 31]),
    ] {
        let error = record::decode(4096, kind, payload.into())
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with(&format!("log record at 4096 of kind {kind}: ")),
            "{error}"
        );
    }
    let mut payload = vec![0; 24];
    payload[16] = 3;
    assert!(
        record::decode(0, 1, payload.into()).is_err(),
        "an unknown entry type"
    );
}
