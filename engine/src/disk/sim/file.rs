//! An open file of the simulated disk.

use std::io;
use std::path::{Path, PathBuf};

use super::super::{DiskError, File, Map, Result};
use super::SimDisk;
use super::fault::FaultOn;
use super::model::{Inode, Op};

#[derive(Debug)]
pub(super) struct SimFile {
    disk: SimDisk,
    inode: Inode,
    path: PathBuf,
}

impl SimFile {
    /// The caller has counted the handle.
    pub(super) fn new(disk: SimDisk, inode: Inode, path: &Path) -> Self {
        Self {
            disk,
            inode,
            path: path.to_owned(),
        }
    }

    fn fail(&self, action: &'static str, offset: u64) -> impl FnOnce(io::Error) -> DiskError {
        move |e| DiskError::io(action, &self.path, offset, e)
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut state = self.disk.lock();
        state.files[self.inode].handles -= 1;
        state.tidy(self.inode);
    }
}

impl File for SimFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> Result<u64> {
        Ok(self.disk.lock().files[self.inode].content.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let mut state = self.disk.lock();
        state
            .faults
            .check(FaultOn::Read, &self.path)
            .map_err(self.fail("read", offset))?;
        Ok(state.files[self.inode].content.read(buf, offset))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let mut state = self.disk.lock();
        state
            .write(self.inode, &self.path, buf, offset)
            .map_err(self.fail("write", offset))
    }

    fn sync(&self) -> Result<()> {
        let mut state = self.disk.lock();
        let done = Op::Sync { inode: self.inode };
        state
            .sync(self.inode, &self.path, done)
            .map_err(self.fail("sync", 0))
    }

    fn write_back(&self, offset: u64, length: u64) -> Result<()> {
        let mut state = self.disk.lock();
        let range = offset..offset.saturating_add(length);
        let inode = self.inode;
        state
            .sync(inode, &self.path, Op::WriteBack { inode, range })
            .map_err(self.fail("write back", offset))
    }

    fn sync_written_back(&self, _map: &Map) -> Result<()> {
        let mut state = self.disk.lock();
        let done = Op::Flush { inode: self.inode };
        state
            .sync(self.inode, &self.path, done)
            .map_err(self.fail("sync", 0))
    }

    fn write_durable(&self, buf: &[u8], offset: u64) -> Result<()> {
        let mut state = self.disk.lock();
        state
            .write(self.inode, &self.path, buf, offset)
            .map_err(self.fail("write", offset))?;
        let range = offset..offset + buf.len() as u64;
        let done = Op::SyncRange {
            inode: self.inode,
            range,
        };
        state
            .sync(self.inode, &self.path, done)
            .map_err(self.fail("sync", offset))
    }

    fn allocate(&self, offset: u64, length: u64) -> Result<()> {
        let mut state = self.disk.lock();
        let end = offset.saturating_add(length);
        state
            .faults
            .check(FaultOn::Allocate, &self.path)
            .and_then(|()| state.check_growth(self.inode, end))
            .map_err(self.fail("allocate", offset))?;
        state.take_map_writes_in(self.inode, 0..0);
        let content = &mut state.files[self.inode].content;
        if (content.len() as u64) < end {
            content.resize(end as usize);
            state.record(Op::Grow {
                inode: self.inode,
                length: end,
            });
        }
        Ok(())
    }

    fn truncate(&self, length: u64) -> Result<()> {
        let mut state = self.disk.lock();
        state
            .faults
            .check(FaultOn::Truncate, &self.path)
            .and_then(|()| state.check_growth(self.inode, length))
            .map_err(self.fail("truncate", length))?;
        state.take_map_writes_in(self.inode, length..u64::MAX);
        state.files[self.inode].content.resize(length as usize);
        state.record(Op::Truncate {
            inode: self.inode,
            length,
        });
        Ok(())
    }

    fn map(&self, reserve_bytes: usize) -> Result<Map> {
        let mut state = self.disk.lock();
        state.files[self.inode]
            .content
            .map(reserve_bytes)
            .map_err(self.fail("map", 0))
    }
}
