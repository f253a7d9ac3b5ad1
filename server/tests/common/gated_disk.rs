//! A disk that hangs or is slow when it is told to: each write and sync that is to be
//! durable waits at a gate before the real disk sees it.
#![allow(missing_docs, unreachable_pub)]

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use varve_engine::disk::psync::PsyncDisk;
use varve_engine::disk::{Disk, File, Map, OpenMode, Result};

#[derive(Debug, Default)]
struct State {
    is_shut: bool,
    /// For the next one only.
    spike: Duration,
    /// For each one.
    delay: Duration,
}

/// Where writes wait.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    /// Nothing completes until the gate is opened.
    pub fn shut(&self) {
        self.state.lock().unwrap().is_shut = true;
    }

    pub fn open(&self) {
        self.state.lock().unwrap().is_shut = false;
        self.changed.notify_all();
    }

    /// The next one takes so much longer.
    pub fn spike(&self, spike: Duration) {
        self.state.lock().unwrap().spike = spike;
    }

    /// Whether the last spike has hit.
    pub fn has_spiked(&self) -> bool {
        self.state.lock().unwrap().spike.is_zero()
    }

    /// Each one takes so much longer.
    pub fn delay(&self, delay: Duration) {
        self.state.lock().unwrap().delay = delay;
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        while state.is_shut {
            state = self.changed.wait(state).unwrap();
        }
        let time = std::mem::take(&mut state.spike) + state.delay;
        drop(state);
        std::thread::sleep(time);
    }
}

/// The disk behind the gate.
#[derive(Debug)]
pub struct GatedDisk {
    gate: Arc<Gate>,
    inner: PsyncDisk,
}

impl GatedDisk {
    pub fn new(gate: Arc<Gate>) -> Self {
        Self {
            gate,
            inner: PsyncDisk::new(),
        }
    }

    fn gated(&self, inner: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(GatedFile {
            gate: self.gate.clone(),
            inner,
        })
    }
}

impl Disk for GatedDisk {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn File>> {
        Ok(self.gated(self.inner.open(path, mode)?))
    }
    fn open_log(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn File>> {
        Ok(self.gated(self.inner.open_log(path, mode)?))
    }
    fn exists(&self, path: &Path) -> Result<bool> {
        self.inner.exists(path)
    }
    fn list(&self, dir: &Path) -> Result<Vec<String>> {
        self.inner.list(dir)
    }
    fn create_dir(&self, dir: &Path) -> Result<()> {
        self.inner.create_dir(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.inner.rename(from, to)
    }
    fn remove(&self, path: &Path) -> Result<()> {
        self.inner.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> Result<()> {
        self.gate.pass();
        self.inner.sync_dir(dir)
    }
}

#[derive(Debug)]
struct GatedFile {
    gate: Arc<Gate>,
    inner: Arc<dyn File>,
}

impl File for GatedFile {
    fn path(&self) -> &Path {
        self.inner.path()
    }
    fn len(&self) -> Result<u64> {
        self.inner.len()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.inner.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.inner.write_at(buf, offset)
    }
    fn sync(&self) -> Result<()> {
        self.gate.pass();
        self.inner.sync()
    }
    fn write_back(&self, offset: u64, length: u64) -> Result<()> {
        self.inner.write_back(offset, length)
    }
    fn write_durable(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.gate.pass();
        self.inner.write_durable(buf, offset)
    }
    fn allocate(&self, offset: u64, length: u64) -> Result<()> {
        self.inner.allocate(offset, length)
    }
    fn truncate(&self, length: u64) -> Result<()> {
        self.inner.truncate(length)
    }
    fn map(&self, reserve_bytes: usize) -> Result<Map> {
        self.inner.map(reserve_bytes)
    }
}
