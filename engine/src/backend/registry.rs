//! The engines that are built in, by name.

use super::memory;

/// Names of the engines, the default first.
pub const NAMES: [&str; 2] = ["btree", memory::NAME];
