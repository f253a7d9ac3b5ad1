//! A memory cgroup: a limit on what a process and its page cache may take.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{BenchError, Result};

/// A group of processes; removed when this is dropped, once they have ended.
pub(super) struct Group {
    path: PathBuf,
}

/// Where memory groups are made, and the name of the limit there.
struct Hierarchy {
    root: PathBuf,
    limit: &'static str,
    swap: &'static str,
}

/// Version 2 where it has the memory controller, else version 1.
fn hierarchy() -> Option<Hierarchy> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    let mounted = |wanted: fn(&str, &str) -> bool| {
        mounts.lines().find_map(|line| {
            let mut columns = line.split(' ').skip(1);
            let (point, kind, options) = (columns.next()?, columns.next()?, columns.next()?);
            wanted(kind, options).then(|| PathBuf::from(point))
        })
    };
    if let Some(root) = mounted(|kind, _| kind == "cgroup2") {
        let controllers = fs::read_to_string(root.join("cgroup.controllers"));
        if controllers.is_ok_and(|names| names.split_whitespace().any(|name| name == "memory")) {
            // Already so on most systems; where it may not be, making the group tells.
            let _ = fs::write(root.join("cgroup.subtree_control"), "+memory");
            return Some(Hierarchy {
                root,
                limit: "memory.max",
                swap: "memory.swap.max",
            });
        }
    }
    let is_memory = |kind: &str, options: &str| {
        kind == "cgroup" && options.split(',').any(|option| option == "memory")
    };
    Some(Hierarchy {
        root: mounted(is_memory)?,
        limit: "memory.limit_in_bytes",
        swap: "memory.swappiness",
    })
}

impl Group {
    /// Makes a group whose processes may take this many bytes, and swap none.
    pub(super) fn make(limit_bytes: u64) -> Result<Self> {
        let Some(hierarchy) = hierarchy() else {
            return Err(BenchError::Usage(
                "this system has no memory cgroups, which `big` needs for its limit".into(),
            ));
        };
        let name = format!("varve-bench-{}", std::process::id());
        let path = hierarchy.root.join(name);
        let failed = |action: &'static str, source: io::Error| BenchError::Io {
            action,
            path: path.clone(),
            source,
        };
        fs::create_dir(&path).map_err(|error| failed("make the memory cgroup", error))?;
        let group = Self { path: path.clone() };
        fs::write(path.join(hierarchy.limit), limit_bytes.to_string())
            .map_err(|error| failed("set the limit of", error))?;
        // A system without swap may lack the file.
        let _ = fs::write(path.join(hierarchy.swap), "0");
        Ok(group)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}

/// Moves this process into the group at `path`. What it takes from now on counts.
pub(super) fn join(path: &Path) -> Result<()> {
    let procs = path.join("cgroup.procs");
    fs::write(&procs, std::process::id().to_string()).map_err(|source| BenchError::Io {
        action: "join the memory cgroup by",
        path: procs,
        source,
    })
}
