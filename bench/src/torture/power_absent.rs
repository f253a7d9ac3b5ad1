//! Stands where `power/` is in a build without the feature `power-loss`.

use std::path::{Path, PathBuf};

/// What was taken at a loss.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Lost {
    pub(super) bytes: u64,
    pub(super) names: u64,
}

/// There is none.
#[derive(Debug)]
pub(super) enum PowerDisk {}

impl PowerDisk {
    pub(super) fn new(_folder: &Path, _name: &str, _below: &Path) -> Result<Self, String> {
        Err("built without the feature power-loss".to_owned())
    }

    pub(super) fn data_dir(&self) -> PathBuf {
        match *self {}
    }

    pub(super) fn cut(&self) {
        match *self {}
    }

    pub(super) fn release(&self) {
        match *self {}
    }

    pub(super) fn lose(&self, _seed: u64) -> Result<Lost, String> {
        match *self {}
    }
}
