//! Tests of what spans several modules.

mod apply;
mod durability;
mod log;
mod member;
mod records;
mod replay;
mod turns;

use std::path::Path;
use std::sync::Arc;

use varve_engine::disk::SimDisk;
use varve_engine::wal::{Identity, Wal, WalConfig};

use crate::membership::{Member, Membership};

/// A log over a simulated disk.
fn wal(disk: &SimDisk) -> Wal {
    let config = WalConfig {
        prepare_in_background: false,
        ..WalConfig::default()
    };
    let identity = Identity {
        cluster_id: 1,
        member_id: 2,
    };
    let disk = Arc::new(disk.clone());
    Wal::open(disk, Path::new("/wal"), config, identity, &mut |_, _, _| ())
        .unwrap()
        .0
}

/// One voter and one learner.
fn membership() -> Membership {
    let mut membership = Membership::default();
    for (id, is_learner) in [(1, false), (2, true)] {
        membership.insert(Member {
            id,
            is_learner,
            name: format!("n{id}"),
            ..Member::default()
        });
    }
    membership
}
