//! The naive model: a whole map of the store for each revision.

use std::collections::BTreeMap;

use varve_types::{
    ApiError, Command, Compare, CompareResult, CompareTarget, DeleteRangeRequest,
    DeleteRangeResponse, Event, EventKind, KeyRange, KeyValue, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RequestOp, ResponseOp, SortOrder, SortTarget, TxnRequest,
    TxnResponse,
};

use super::super::validate::check_shape;
use super::super::{CommandResponse, Reply};

type Map = BTreeMap<Vec<u8>, KeyValue>;
type Refusable<T> = Result<T, ApiError>;

pub(super) struct Model {
    /// The store at each revision.
    states: Vec<Map>,
    /// The events of each revision.
    events: Vec<Vec<Event>>,
    pub(super) compacted: i64,
    /// Events of the command that is being applied.
    fresh: Vec<Event>,
    now: Map,
}

impl Model {
    pub(super) fn new() -> Self {
        Self {
            states: vec![Map::new(), Map::new()],
            events: vec![vec![], vec![]],
            compacted: -1,
            fresh: vec![],
            now: Map::new(),
        }
    }

    pub(super) fn revision(&self) -> i64 {
        self.states.len() as i64 - 1
    }

    pub(super) fn keys_at(&self, revision: i64) -> Vec<KeyValue> {
        self.states[revision as usize].values().cloned().collect()
    }

    pub(super) fn events_from(&self, from: i64, prev_kv: bool) -> Vec<Event> {
        let events = self.events[from.max(0) as usize..].iter().flatten();
        events
            .map(|event| {
                let kept = prev_kv && event.kv.mod_revision > self.compacted;
                Event {
                    prev_kv: event.prev_kv.clone().filter(|_| kept),
                    ..event.clone()
                }
            })
            .collect()
    }

    pub(super) fn apply(&mut self, command: &Command<'_>) -> Reply {
        self.now = self.states.last().cloned().unwrap_or_default();
        let result = check_shape(command).and_then(|()| self.perform(command));
        if !self.fresh.is_empty() {
            assert!(result.is_ok());
            self.states.push(std::mem::take(&mut self.now));
            self.events.push(std::mem::take(&mut self.fresh));
        }
        Reply {
            revision: self.revision(),
            result,
        }
    }

    fn perform(&mut self, command: &Command<'_>) -> Refusable<CommandResponse> {
        Ok(match command {
            Command::Put(put) => {
                self.check_put(put)?;
                CommandResponse::Put(self.put(put))
            }
            Command::DeleteRange(delete) => CommandResponse::DeleteRange(self.delete(delete)),
            Command::Txn(txn) => {
                let before = self.now.clone();
                let mut ops = Vec::new();
                chosen(&before, txn, &mut ops);
                for op in &ops {
                    if let RequestOp::Put(put) = op {
                        self.check_put(put)?;
                    }
                }
                for op in &ops {
                    if let RequestOp::Range(range) = op {
                        self.check_revision(range.revision)?;
                    }
                }
                CommandResponse::Txn(self.txn(&before, txn))
            }
            Command::Compaction(request) => {
                if request.revision <= self.compacted {
                    return Err(ApiError::Compacted);
                }
                if request.revision > self.revision() {
                    return Err(ApiError::FutureRevision);
                }
                self.compacted = request.revision;
                CommandResponse::Compaction
            }
            Command::MemberAttributes(_) => CommandResponse::MemberAttributes,
            Command::Alarm(_) => return Err(ApiError::NotCapable),
        })
    }

    fn check_put(&self, put: &PutRequest<'_>) -> Refusable<()> {
        if (put.ignore_value || put.ignore_lease) && !self.now.contains_key(put.key) {
            return Err(ApiError::KeyNotFound);
        }
        // The tests grant lease 7 only.
        if put.lease != 0 && put.lease != 7 {
            return Err(ApiError::LeaseNotFound);
        }
        Ok(())
    }

    fn check_revision(&self, revision: i64) -> Refusable<()> {
        match revision {
            ..=0 => Ok(()),
            revision if revision > self.revision() => Err(ApiError::FutureRevision),
            revision if revision < self.compacted => Err(ApiError::Compacted),
            _ => Ok(()),
        }
    }

    fn put(&mut self, put: &PutRequest<'_>) -> PutResponse {
        let before = self.now.get(put.key).cloned();
        let next = self.revision() + 1;
        let mut kv = before.clone().unwrap_or_else(|| KeyValue {
            key: put.key.to_vec(),
            create_revision: next,
            ..KeyValue::default()
        });
        kv.mod_revision = next;
        kv.version += 1;
        if !put.ignore_value {
            kv.value = put.value.to_vec();
        }
        if !put.ignore_lease {
            kv.lease = put.lease;
        }
        self.now.insert(put.key.to_vec(), kv.clone());
        self.fresh.push(Event {
            kind: EventKind::Put,
            kv,
            prev_kv: before.clone(),
        });
        PutResponse {
            prev_kv: before.filter(|_| put.prev_kv),
        }
    }

    fn delete(&mut self, delete: &DeleteRangeRequest<'_>) -> DeleteRangeResponse {
        let range = delete.range();
        let gone: Vec<_> = self
            .now
            .values()
            .filter(|kv| range.contains(&kv.key))
            .cloned()
            .collect();
        for kv in &gone {
            self.now.remove(&kv.key);
            self.fresh.push(Event {
                kind: EventKind::Delete,
                kv: KeyValue {
                    key: kv.key.clone(),
                    mod_revision: self.revision() + 1,
                    ..KeyValue::default()
                },
                prev_kv: Some(kv.clone()),
            });
        }
        DeleteRangeResponse {
            deleted: gone.len() as i64,
            prev_kvs: if delete.prev_kv { gone } else { vec![] },
        }
    }

    fn txn(&mut self, before: &Map, txn: &TxnRequest<'_>) -> TxnResponse {
        let succeeded = txn.compare.iter().all(|compare| holds(before, compare));
        let ops = if succeeded {
            &txn.success
        } else {
            &txn.failure
        };
        let responses = ops
            .iter()
            .map(|op| match op {
                RequestOp::Range(range) => ResponseOp::Range(if range.revision > 0 {
                    answer(&self.states[range.revision as usize], range)
                } else {
                    answer(&self.now, range)
                }),
                RequestOp::Put(put) => ResponseOp::Put(self.put(put)),
                RequestOp::DeleteRange(delete) => ResponseOp::DeleteRange(self.delete(delete)),
                RequestOp::Txn(nested) => ResponseOp::Txn(self.txn(before, nested)),
            })
            .collect();
        TxnResponse {
            succeeded,
            responses,
        }
    }

    pub(super) fn range(&self, request: &RangeRequest<'_>) -> Refusable<RangeResponse> {
        self.check_revision(request.revision)?;
        let revision = match request.revision {
            ..=0 => self.revision(),
            revision => revision,
        };
        Ok(answer(&self.states[revision as usize], request))
    }
}

/// The operations of `txn` that its compares choose, those of nested ones included.
fn chosen<'t, 'a>(before: &Map, txn: &'t TxnRequest<'a>, ops: &mut Vec<&'t RequestOp<'a>>) {
    let succeeded = txn.compare.iter().all(|compare| holds(before, compare));
    for op in if succeeded {
        &txn.success
    } else {
        &txn.failure
    } {
        match op {
            RequestOp::Txn(nested) => chosen(before, nested, ops),
            op => ops.push(op),
        }
    }
}

fn holds(map: &Map, compare: &Compare<'_>) -> bool {
    let range = KeyRange::new(compare.key, compare.range_end);
    let mut kvs: Vec<_> = map
        .values()
        .filter(|kv| range.contains(&kv.key))
        .cloned()
        .collect();
    if kvs.is_empty() {
        if matches!(compare.target, CompareTarget::Value(_)) {
            return false;
        }
        kvs.push(KeyValue::default());
    }
    kvs.iter().all(|kv| {
        let order = match compare.target {
            CompareTarget::Version(given) => kv.version.cmp(&given),
            CompareTarget::Create(given) => kv.create_revision.cmp(&given),
            CompareTarget::Mod(given) => kv.mod_revision.cmp(&given),
            CompareTarget::Value(given) => kv.value.as_slice().cmp(given),
            CompareTarget::Lease(given) => kv.lease.cmp(&given),
        };
        match compare.result {
            CompareResult::Equal => order.is_eq(),
            CompareResult::NotEqual => order.is_ne(),
            CompareResult::Greater => order.is_gt(),
            CompareResult::Less => order.is_lt(),
        }
    })
}

fn answer(map: &Map, request: &RangeRequest<'_>) -> RangeResponse {
    let range = request.range();
    let mut kvs: Vec<_> = map
        .values()
        .filter(|kv| range.contains(&kv.key))
        .cloned()
        .collect();
    let count = kvs.len() as i64;
    if request.count_only {
        return RangeResponse {
            count,
            ..RangeResponse::default()
        };
    }
    let within =
        |value, least, most| (least == 0 || value >= least) && (most == 0 || value <= most);
    kvs.retain(|kv| {
        let (modified, created) = (kv.mod_revision, kv.create_revision);
        within(modified, request.min_mod_revision, request.max_mod_revision)
            && within(
                created,
                request.min_create_revision,
                request.max_create_revision,
            )
    });
    let descend = request.sort_order == SortOrder::Descend;
    kvs.sort_by(|a, b| {
        let order = match request.sort_target {
            SortTarget::Key => a.key.cmp(&b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(&b.value),
        };
        if descend { order.reverse() } else { order }
    });
    let limit = if request.limit > 0 {
        request.limit as usize
    } else {
        usize::MAX
    };
    let more = kvs.len() > limit;
    kvs.truncate(limit);
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value.clear());
    }
    RangeResponse { kvs, more, count }
}
