//! A run: the engine and the model side by side.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::super::{
    Applied, Backend, BackendError, Batch, Direction, Entry, Keep, Peek, Read, Snapshot, TreeId,
};
use super::model::{Entries, Model};
use super::{Opener, Operation, Range, Traits};

/// Why a run failed.
type Failure = String;
type Outcome = Result<(), Failure>;

/// Sees the published and the checkpointed model.
type Observer<'s> = Box<dyn FnMut(&Model, &Model) + 's>;

/// An engine under test.
pub struct Session<'s> {
    opener: &'s mut Opener<'s>,
    traits: Traits,
    backend: Arc<dyn Backend>,
    /// What is published, and what is checkpointed.
    published: Model,
    durable: Model,
    kept: Vec<(Arc<dyn Snapshot>, Model)>,
    /// Called after each checkpoint and publish with the models as they are.
    observer: Option<Observer<'s>>,
}

fn failed(what: &str) -> impl Fn(BackendError) -> Failure + '_ {
    move |error| format!("{what}: {error}")
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, engine: T, model: T) -> Outcome {
    if engine == model {
        return Ok(());
    }
    let (mut engine, mut model) = (format!("{engine:?}"), format!("{model:?}"));
    engine.truncate(400);
    model.truncate(400);
    Err(format!(
        "{what}: the engine says {engine}, the model {model}"
    ))
}

impl<'s> Session<'s> {
    /// Opens the store, which must be empty.
    pub fn new(opener: &'s mut Opener<'s>, traits: Traits) -> Result<Self, Failure> {
        let backend = opener().map_err(failed("open"))?;
        Ok(Self {
            opener,
            traits,
            backend,
            published: Model::default(),
            durable: Model::default(),
            kept: Vec::new(),
            observer: None,
        })
    }

    /// Calls `observer` with the published and the checkpointed model whenever
    /// one of them changed.
    pub fn observe(&mut self, observer: impl FnMut(&Model, &Model) + 's) {
        self.observer = Some(Box::new(observer));
    }

    /// The engine.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Runs operations, and at the end compares everything and runs the
    /// engine's integrity check.
    ///
    /// # Errors
    ///
    /// Says at which operation engine and model differ, and how.
    pub fn run(&mut self, operations: &[Operation]) -> Outcome {
        let mut rest = operations;
        while !rest.is_empty() {
            let at = operations.len() - rest.len();
            let done = self.run_batch(rest);
            let (count, outcome) = match done {
                Ok(count) => (count, Ok(())),
                Err((count, failure)) => (count, Err(failure)),
            };
            outcome.map_err(|failure| format!("operation {}: {failure}", at + count))?;
            rest = &rest[count..];
        }
        self.finish()
    }

    /// Runs up to the end of a batch; how many operations that were, also of
    /// those before a failure.
    fn run_batch(&mut self, operations: &[Operation]) -> Result<usize, (usize, Failure)> {
        let backend = Arc::clone(&self.backend);
        let mut batch = backend
            .begin()
            .map_err(|error| (0, failed("begin")(error)))?;
        let mut model = self.published.clone();
        for (count, operation) in operations.iter().enumerate() {
            let outcome = match operation {
                Operation::Publish => {
                    let outcome = self.publish(batch, model);
                    return outcome
                        .map(|()| count + 1)
                        .map_err(|failure| (count, failure));
                }
                Operation::Abort => return Ok(count + 1),
                Operation::Reopen => {
                    drop(batch);
                    drop(backend);
                    let outcome = self.reopen();
                    return outcome
                        .map(|()| count + 1)
                        .map_err(|failure| (count, failure));
                }
                Operation::Vacuum => vacuum(&*backend, &mut *batch),
                operation if operation.is_write() => write(&mut *batch, &mut model, operation),
                operation => self.step(&*batch, &model, operation),
            };
            outcome.map_err(|failure| (count, failure))?;
        }
        let outcome = self.publish(batch, model);
        outcome
            .map(|()| operations.len())
            .map_err(|failure| (operations.len(), failure))
    }

    fn step(&mut self, batch: &dyn Batch, model: &Model, operation: &Operation) -> Outcome {
        match operation {
            Operation::Checkpoint => self.checkpoint(),
            Operation::Keep => self.keep(),
            Operation::Release { which } if !self.kept.is_empty() => {
                let (snapshot, model) = self.kept.swap_remove(which % self.kept.len());
                compare_all(&*snapshot, &model)
            }
            Operation::Check => self.backend.check().map(drop).map_err(failed("check")),
            operation => {
                read(batch, model, operation)?;
                let snapshot = self.backend.snapshot().map_err(failed("snapshot"))?;
                same("applied", snapshot.applied(), self.published.applied)?;
                read(&*snapshot, &self.published, operation)
            }
        }
    }

    fn publish(&mut self, batch: Box<dyn Batch + '_>, mut model: Model) -> Outcome {
        let index = self.published.applied.index + 1;
        model.applied = Applied {
            term: 1 + index / 10,
            index,
        };
        batch.publish(model.applied).map_err(failed("publish"))?;
        self.published = model;
        self.changed();
        Ok(())
    }

    fn changed(&mut self) {
        if let Some(observer) = &mut self.observer {
            observer(&self.published, &self.durable);
        }
    }

    fn checkpoint(&mut self) -> Outcome {
        let applied = self.backend.checkpoint().map_err(failed("checkpoint"))?;
        same("checkpoint's applied", applied, self.published.applied)?;
        same("durable", self.backend.durable(), applied)?;
        self.durable = self.published.clone();
        self.changed();
        Ok(())
    }

    fn keep(&mut self) -> Outcome {
        let snapshot = self.backend.snapshot().map_err(failed("snapshot"))?;
        self.kept.push((snapshot, self.published.clone()));
        Ok(())
    }

    fn reopen(&mut self) -> Outcome {
        self.release_all()?;
        // The store must be closed before it is opened again.
        self.backend = Arc::new(super::super::memory::Memory::new());
        self.backend = (self.opener)().map_err(failed("open again"))?;
        // An engine may also keep, at an orderly end, what is not checkpointed.
        let applied = self.backend.durable();
        if !self.traits.durable {
            self.durable = Model::default();
        } else if applied == self.published.applied {
            self.durable = self.published.clone();
        }
        self.published = self.durable.clone();
        same(
            "durable after open",
            self.backend.durable(),
            self.durable.applied,
        )?;
        self.compare_published()
    }

    fn release_all(&mut self) -> Outcome {
        for (snapshot, model) in std::mem::take(&mut self.kept) {
            compare_all(&*snapshot, &model)?;
        }
        Ok(())
    }

    fn compare_published(&self) -> Outcome {
        let snapshot = self.backend.snapshot().map_err(failed("snapshot"))?;
        same("applied", snapshot.applied(), self.published.applied)?;
        compare_all(&*snapshot, &self.published)
    }

    fn finish(&mut self) -> Outcome {
        self.release_all()?;
        self.compare_published()?;
        let report = self.backend.check().map_err(failed("check"))?;
        let entries: usize = self.published.trees.iter().map(|tree| tree.len()).sum();
        same(
            "entries in the check's report",
            report.entries,
            entries as u64,
        )?;
        same("readers", self.backend.stats().readers, 0)
    }
}

/// Starts a vacuum and does a part of it, as a batch among others would.
fn vacuum(backend: &dyn Backend, batch: &mut dyn Batch) -> Outcome {
    backend.start_vacuum(super::super::VacuumExtent::All);
    for _ in 0..3 {
        if !batch.vacuum_step().map_err(failed("vacuum"))? {
            break;
        }
    }
    Ok(())
}

impl Operation {
    fn is_write(&self) -> bool {
        use Operation::{Delete, DeleteRange, GetPut, Put, PutAll, PutAndKeep};
        matches!(
            self,
            Put { .. }
                | GetPut { .. }
                | PutAll { .. }
                | PutAndKeep { .. }
                | Delete { .. }
                | DeleteRange { .. }
        )
    }
}

fn write(batch: &mut dyn Batch, model: &mut Model, operation: &Operation) -> Outcome {
    match operation {
        Operation::Put { tree, key, value } => {
            batch
                .put(TreeId(*tree), key, value)
                .map_err(failed("put"))?;
            model.tree(*tree).insert(key.clone(), value.clone());
        }
        Operation::PutAll { tree, entries } => {
            let slices: Vec<Entry<'_>> = entries.iter().map(|(k, v)| (&k[..], &v[..])).collect();
            batch
                .put_all(TreeId(*tree), &slices)
                .map_err(failed("put all"))?;
            model.tree(*tree).extend(entries.iter().cloned());
        }
        Operation::GetPut { tree, key, value } => {
            get(batch, model, *tree, key)?;
            batch
                .put(TreeId(*tree), key, value)
                .map_err(failed("put"))?;
            model.tree(*tree).insert(key.clone(), value.clone());
            get(batch, model, *tree, key)?;
        }
        Operation::PutAndKeep {
            tree,
            key,
            value,
            keep_tree,
            keep_key,
            head,
        } => {
            let keep = Keep {
                tree: TreeId(*keep_tree),
                key: keep_key,
                head,
            };
            let done = batch.put_and_keep(TreeId(*tree), key, value, keep);
            done.map_err(failed("put_and_keep"))?;
            let former = model.tree(*tree).insert(key.clone(), value.clone());
            let kept = [&head[..], &former.unwrap_or_default()].concat();
            model.tree(*keep_tree).insert(keep_key.clone(), kept);
            get(batch, model, *tree, key)?;
            get(batch, model, *keep_tree, keep_key)?;
        }
        Operation::Delete { tree, key } => {
            let was = batch.delete(TreeId(*tree), key).map_err(failed("delete"))?;
            same("delete", was, model.tree(*tree).remove(key).is_some())?;
        }
        Operation::DeleteRange { tree, range } => {
            let count = batch.delete_range(TreeId(*tree), range.bounds());
            let count = count.map_err(failed("delete_range"))?;
            same("delete_range", count, model.delete_range(*tree, range))?;
        }
        _ => {}
    }
    Ok(())
}

/// A read, of either a batch or a snapshot.
fn read<R: Read + ?Sized>(engine: &R, model: &Model, operation: &Operation) -> Outcome {
    match operation {
        Operation::Get { tree, key } => get(engine, model, *tree, key),
        Operation::Scan {
            tree,
            range,
            direction,
            limit,
        } => {
            let entries = scan(engine, *tree, range, *direction, *limit)?;
            same(
                "scan",
                entries,
                model.scan(*tree, range, *direction, *limit),
            )
        }
        Operation::Sums { tree, range } => {
            let sums = engine
                .sums(TreeId(*tree), range.bounds())
                .map_err(failed("sums"))?;
            same("sums", sums, model.sums(*tree, range))
        }
        _ => Ok(()),
    }
}

fn get<R: Read + ?Sized>(engine: &R, model: &Model, tree: u8, key: &[u8]) -> Outcome {
    let value = engine.get(TreeId(tree), key).map_err(failed("get"))?;
    let expected = model.trees[usize::from(tree)].get(key);
    same("get", value.as_deref(), expected.map(Vec::as_slice))?;
    let peek = engine.peek(TreeId(tree), key).map_err(failed("peek"))?;
    let is_right = match (&peek, expected) {
        (Some(peek), Some(expected)) => is_peek(peek, expected),
        (peek, expected) => peek.is_none() && expected.is_none(),
    };
    same("a peek is of the value", is_right, true)
}

/// Whether a peek may have found `value`.
fn is_peek(peek: &Peek<'_>, value: &[u8]) -> bool {
    peek.length == value.len() && value.starts_with(&peek.bytes)
}

/// Collects a scan.
pub(super) fn scan<R: Read + ?Sized>(
    engine: &R,
    tree: u8,
    range: &Range,
    direction: Direction,
    limit: usize,
) -> Result<Entries, Failure> {
    let mut entries = Entries::new();
    if limit == 0 {
        return Ok(entries);
    }
    let scanned = engine.scan(
        TreeId(tree),
        range.bounds(),
        direction,
        &mut |key, value| {
            entries.push((key.to_vec(), value.to_vec()));
            if entries.len() == limit {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        },
    );
    scanned.map_err(failed("scan"))?;
    Ok(entries)
}

/// Compares all trees of a state with the model.
///
/// # Errors
///
/// Says what differs.
pub fn compare_all<R: Read + ?Sized>(engine: &R, model: &Model) -> Outcome {
    let all = Range::default();
    for (tree, entries) in (0_u8..).zip(&model.trees) {
        let mut expected = entries.iter();
        let mut differs = None;
        let scanned = engine.scan(
            TreeId(tree),
            all.bounds(),
            Direction::Forward,
            &mut |key, value| match expected.next() {
                Some((k, v)) if k == key && v == value => ControlFlow::Continue(()),
                _ => {
                    differs = Some(key.to_vec());
                    ControlFlow::Break(())
                }
            },
        );
        scanned.map_err(failed("scan"))?;
        if let Some(key) = differs {
            return Err(format!("tree {tree} differs from the model at key {key:?}"));
        }
        if let Some((key, _)) = expected.next() {
            return Err(format!("tree {tree} lacks key {key:?} of the model"));
        }
        let mut expected = entries.iter();
        let scanned = engine.peek_scan(
            TreeId(tree),
            all.bounds(),
            Direction::Forward,
            &mut |key, peek| match expected.next() {
                Some((k, v)) if k == key && is_peek(&peek, v) => ControlFlow::Continue(()),
                _ => {
                    differs = Some(key.to_vec());
                    ControlFlow::Break(())
                }
            },
        );
        scanned.map_err(failed("peek_scan"))?;
        same("the first key at which peeks differ", differs, None)?;
        same("keys without a peek", expected.count(), 0)?;
        let sums = engine
            .sums(TreeId(tree), all.bounds())
            .map_err(failed("sums"))?;
        same("sums of a tree", sums, model.sums(tree, &all))?;
    }
    Ok(())
}
