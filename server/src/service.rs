//! What all connections of a node share.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use varve_engine::mvcc::{Limits, MvccError, SpaceQuery, View};
use varve_protocol::{
    HashKvRequest, HashKvResponse, HelloResponse, SpaceLine, SpaceRequest, SpaceResponse,
    StatusResponse, WireError,
};
use varve_raft::{NodeHandle, is_damaged_store};
use varve_types::{AlarmRequest, AlarmResponse, ApiError, ResponseHeader};

use crate::leave::Leave;
use crate::metrics::Metrics;
use crate::rate_limit::LogLimit;
use crate::watch::Hub;

/// The version that the node says it has.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Most lines in one answer to a request for space: a few milliseconds.
const MAX_SPACE_LINES: usize = 256;

/// What connections may ask for.
#[derive(Debug, Clone, Copy)]
pub struct RequestLimits {
    /// `--max-request-bytes`.
    pub request_bytes: usize,
    /// What the store refuses without looking.
    pub store: Limits,
    /// `--watch-progress-notify-interval`.
    pub progress_interval: Duration,
}

/// The node, as its connections see it.
pub struct Service {
    /// The replica.
    pub node: NodeHandle,
    /// Live watches.
    pub hub: Arc<Hub>,
    /// Figures.
    pub metrics: Arc<Metrics>,
    /// Bounds of requests.
    pub limits: RequestLimits,
    /// This member's name.
    pub name: String,
    /// The storage engine's name.
    pub engine: &'static str,
    /// The disk's name.
    pub disk: &'static str,
    /// Whether another one was asked for.
    pub disk_fallback: bool,
    /// Bounds the log lines about failed health checks.
    pub health_log: LogLimit,
    /// This cluster.
    pub cluster_id: u64,
    /// This member.
    pub member_id: u64,
    /// Whether it is on its way down: it takes no new requests.
    pub draining: AtomicBool,
    /// Whether it leaves to be healed, or stays while another one does.
    pub leave: Leave,
    /// The damaged member in whose place this one came.
    pub healed_from: Option<u64>,
    /// Sets of damaged files in the data directory, at the start.
    pub damaged_sets: usize,
}

impl Service {
    /// The header of a reply made from the state at `revision`.
    pub fn header(&self, revision: i64, raft_term: u64) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.cluster_id,
            member_id: self.member_id,
            revision,
            raft_term,
        }
    }

    /// Takes no new requests from now on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether it takes no new requests.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// The damaged member in whose place this one came, until it has its vote.
    pub fn healing(&self) -> Option<u64> {
        let known = self.node.members();
        // Before its first snapshot it knows the members only from hearsay.
        let votes = known
            .get(self.member_id)
            .is_some_and(|own| !own.is_learner && self.node.status().applied_index > 0);
        self.healed_from.filter(|_| !votes)
    }

    /// The Raft term that this member is in.
    pub fn term(&self) -> u64 {
        self.node.term()
    }

    /// An error of the store as a client sees it. What is the store's own fault is logged
    /// too, and damage ends this member's service.
    pub fn wire_error(&self, error: &MvccError, view: &View) -> WireError {
        match error.api() {
            Some(ApiError::Compacted) => WireError::compacted(view.compacted()),
            Some(error) => error.into(),
            None => {
                tracing::error!("the store failed to answer a read: {error}");
                if is_damaged_store(error) {
                    self.node.report_damage(error.to_string());
                }
                WireError::internal(error.to_string())
            }
        }
    }

    /// Answer to a hello.
    pub fn hello(&self) -> HelloResponse {
        HelloResponse {
            server_version: VERSION.to_owned(),
            cluster_version: VERSION.to_owned(),
            member_name: self.name.clone(),
            max_request_bytes: self.limits.request_bytes as u64,
        }
    }

    /// The alarms that `request` is about.
    pub fn alarms(&self, request: &AlarmRequest) -> AlarmResponse {
        let members = self.node.members();
        let alarms = members.alarms().filter(|alarm| request.matches(alarm));
        AlarmResponse {
            alarms: alarms.copied().collect(),
        }
    }

    /// Answer to a status request.
    pub fn status(&self) -> StatusResponse {
        let mut status = self.node.status();
        if let Some(damaged) = self.healing() {
            status.errors.push(format!(
                "HEALING: member {damaged:x} was damaged; {:x} is in its place and catches up as \
                 a learner",
                self.member_id
            ));
        }
        let stats = self.node.backend().stats();
        StatusResponse {
            version: VERSION.to_owned(),
            storage_version: VERSION.to_owned(),
            engine: self.engine.to_owned(),
            db_size: signed(stats.file_bytes),
            db_size_in_use: signed(stats.used_bytes),
            db_size_quota: 0,
            leader: status.leader,
            raft_index: status.commit_index,
            raft_term: status.term,
            raft_applied_index: status.applied_index,
            is_learner: status.is_learner,
            errors: status.errors,
        }
    }
}

/// Answer to a request for the store's hash.
pub fn hash_kv(view: &View, request: &HashKvRequest) -> Result<HashKvResponse, MvccError> {
    let hash = view.hash_at(request.revision)?;
    Ok(HashKvResponse {
        hash,
        hash_revision: match request.revision {
            ..=0 => view.revision(),
            revision => revision,
        },
        compact_revision: view.compacted(),
    })
}

/// Answer to a request for the space that keys take.
pub fn space(view: &View, request: &SpaceRequest<'_>) -> Result<SpaceResponse, MvccError> {
    let query = SpaceQuery {
        prefix: request.prefix,
        separator: request.separator,
        depth: request.depth as usize,
        after: request.after,
    };
    let limit = match request.limit as usize {
        0 => MAX_SPACE_LINES,
        limit => limit.min(MAX_SPACE_LINES),
    };
    let mut reply = SpaceResponse::default();
    view.space(&query, &mut |line| {
        if reply.lines.len() == limit {
            reply.more = true;
            return ControlFlow::Break(());
        }
        reply.lines.push(SpaceLine {
            name: line.name,
            is_directory: line.is_directory,
            keys: line.sums.keys,
            bytes: line.sums.bytes,
        });
        ControlFlow::Continue(())
    })?;
    Ok(reply)
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
