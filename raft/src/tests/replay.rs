//! What recovered records make of the log.

use bytes::Bytes;
use raft::eraftpb::{Entry, HardState};
use varve_engine::disk::SimDisk;
use varve_engine::wal::{Group, Lsn};

use super::{membership, wal};
use crate::error::RaftError;
use crate::record::{self, Marker};
use crate::replay::{Replay, Replayed};

enum Put {
    Entry(u64, u64),
    State(u64),
    Marker { index: u64, term: u64, reset: bool },
}
use Put::{Entry as E, Marker as M, State as S};

const BEGIN: Put = M {
    index: 1,
    term: 1,
    reset: true,
};

fn replay(records: &[Put]) -> Result<Option<Replayed>, RaftError> {
    let mut group = Group::new();
    for record in records {
        match *record {
            E(index, term) => {
                let data = Bytes::from_static(b"data");
                let entry = Entry {
                    index,
                    term,
                    data,
                    ..Entry::default()
                };
                record::push_entry(&mut group, &entry)?;
            }
            S(commit) => {
                let state = HardState {
                    term: 1,
                    commit,
                    ..HardState::default()
                };
                record::push_hard_state(&mut group, &state)?;
            }
            M { index, term, reset } => {
                let marker = Marker {
                    index,
                    term,
                    store: 1,
                    reset,
                    membership: membership(),
                };
                record::push_marker(&mut group, &marker)?;
            }
        }
    }
    let mut replay = Replay::new(1 << 20);
    for (offset, kind, payload) in group.iter() {
        replay.visit(offset as Lsn + 4096, kind, payload);
    }
    replay.finish(wal(&SimDisk::new()).reader())
}

/// First and last index, and the last's term.
fn shape(records: &[Put]) -> (u64, u64, u64) {
    let log = replay(records).unwrap().unwrap().log;
    (log.first(), log.last(), log.term_at(log.last()).unwrap())
}

fn error(records: &[Put]) -> String {
    replay(records).unwrap_err().to_string()
}

#[test]
fn an_empty_log_is_new() {
    assert!(replay(&[]).unwrap().is_none());
}

#[test]
fn later_entries_win() {
    assert_eq!(shape(&[BEGIN]), (2, 1, 1));
    assert_eq!(shape(&[BEGIN, E(2, 1), E(3, 1), S(3)]), (2, 3, 1));
    assert_eq!(
        shape(&[BEGIN, E(2, 1), E(3, 1), E(4, 1), E(3, 2)]),
        (2, 3, 2)
    );
    assert_eq!(shape(&[BEGIN, E(2, 1), E(2, 2), E(3, 2)]), (2, 3, 2));
}

#[test]
fn markers_begin_the_log() {
    let keep = |index| M {
        index,
        term: 1,
        reset: false,
    };
    assert_eq!(
        shape(&[BEGIN, E(2, 1), E(3, 1), E(4, 1), keep(3)]),
        (4, 4, 1)
    );
    assert_eq!(shape(&[BEGIN, E(2, 1), keep(2)]), (3, 2, 1));
    let snapshot = M {
        index: 9,
        term: 3,
        reset: true,
    };
    assert_eq!(shape(&[BEGIN, E(2, 1), snapshot]), (10, 9, 3));
    let inside = M {
        index: 2,
        term: 3,
        reset: true,
    };
    assert_eq!(
        shape(&[BEGIN, E(2, 1), E(3, 1), inside, E(3, 3)]),
        (3, 3, 3)
    );
}

#[test]
fn segments_that_were_let_go_leave_a_middle_to_begin_with() {
    let keep = |index| M {
        index,
        term: 1,
        reset: false,
    };
    // The marker follows the entries that it keeps.
    assert_eq!(shape(&[E(5, 1), E(6, 1), keep(4), E(7, 1)]), (5, 7, 1));
    // Entries that are void come first.
    assert_eq!(shape(&[E(9, 1), E(5, 2), E(6, 2), keep(4)]), (5, 6, 2));
    // An older marker's entries are gone; a newer one says that they may be.
    assert_eq!(shape(&[E(8, 1), keep(4), E(9, 1), keep(7)]), (8, 9, 1));
    assert_eq!(shape(&[keep(4), E(8, 1), E(9, 1), keep(7)]), (8, 9, 1));
}

#[test]
fn contradictions_are_refused() {
    let keep = |index| M {
        index,
        term: 1,
        reset: false,
    };
    assert!(error(&[E(2, 1)]).contains("no marker that says where it begins"));
    assert!(error(&[S(2)]).contains("no marker"));
    let gap = "begins after entry 1, but the next one it holds is 4";
    assert!(error(&[BEGIN, E(2, 1), E(4, 1)]).contains(gap));
    assert!(error(&[E(8, 1), keep(4), E(9, 1)]).contains("begins after entry 4"));
    assert!(error(&[BEGIN, E(2, 1), S(3)]).contains("committed up to 3, but the last is 2"));
    assert!(error(&[BEGIN, E(2, 2), E(3, 1)]).contains("of term 1, after one of term 2"));
}

#[test]
fn old_entries_are_let_go_from_memory() {
    let mut replay = Replay::new(1000);
    let mut group = Group::new();
    let marker = Marker {
        index: 1,
        term: 1,
        store: 1,
        reset: true,
        membership: membership(),
    };
    record::push_marker(&mut group, &marker).unwrap();
    for index in 2..=100 {
        // Sizes differ, so that small ones would fit where a large one does not.
        let data = Bytes::from(vec![0; if index % 7 == 0 { 700 } else { 50 }]);
        let entry = Entry {
            index,
            term: 1,
            data,
            ..Entry::default()
        };
        record::push_entry(&mut group, &entry).unwrap();
    }
    let mut wal = wal(&SimDisk::new());
    let first = wal.commit(&mut group).unwrap().first_lsn;
    for (offset, kind, payload) in group.iter() {
        replay.visit(first + offset, kind, payload);
    }
    let log = replay.finish(wal.reader()).unwrap().unwrap().log;
    use raft::Storage;
    let entries = log
        .entries(2, 101, None, raft::GetEntriesContext::empty(false))
        .unwrap();
    assert_eq!(entries.len(), 99);
    assert!(
        entries
            .iter()
            .all(|e| e.data.len() == if e.index % 7 == 0 { 700 } else { 50 })
    );
}
