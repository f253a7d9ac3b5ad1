//! What a measurement was made on and with.

use std::path::Path;
use std::process::Command;

use serde::Serialize;

/// The machine, as far as it bears on figures.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    /// Model of the processor.
    pub(crate) cpu: String,
    /// Processors that this program may use.
    pub(crate) cores: usize,
    /// Memory in GiB.
    pub(crate) memory_gib: f64,
    /// Kernel release.
    pub(crate) kernel: String,
    /// Type of the file system under the nodes' data, where this program started them.
    pub(crate) file_system: String,
}

impl Machine {
    /// Looks around. `data` is where spawned nodes keep their data.
    pub(crate) fn describe(data: Option<&Path>) -> Self {
        let cpu_info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib = kib(&memory, "MemTotal").unwrap_or(0) as f64;
        Self {
            cpu: field(&cpu_info, "model name")
                .unwrap_or("unknown")
                .to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: (kib / 1024.0 / 102.4).round() / 10.0,
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
                .map_or_else(|_| "unknown".into(), |text| text.trim().to_owned()),
            file_system: data.map_or_else(|| "not ours".into(), file_system),
        }
    }
}

/// Uses `bytes` of memory, or half of what is available, and lets them go. A virtual machine may have given back to its
/// host what was free for a while, and pays for the first use of each page after that,
/// many times what the page costs else: not what an engine is measured for.
pub(crate) fn touch_memory(bytes: usize) {
    const PAGE: usize = 4096;
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = kib(&memory, "MemAvailable").unwrap_or(0);
    let mut memory = vec![0u8; bytes.min(available * 1024 / 2)];
    for page in memory.chunks_mut(PAGE) {
        page[0] = 1;
    }
    std::hint::black_box(&memory);
}

fn kib(memory: &str, name: &str) -> Option<usize> {
    field(memory, name)?.split(' ').next()?.parse().ok()
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

/// The type of the file system that holds `path`: that of the longest mount point before it.
fn file_system(path: &Path) -> String {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    mounts
        .lines()
        .filter_map(|line| {
            let mut columns = line.split(' ').skip(1);
            let (point, kind) = (columns.next()?, columns.next()?);
            path.starts_with(point).then_some((point.len(), kind))
        })
        .max_by_key(|(length, _)| *length)
        .map_or_else(|| "unknown".into(), |(_, kind)| kind.to_owned())
}

/// The commit that this binary was built from: that of the work tree that it
/// lies in or is run from, marked where the tree has other changes.
pub(crate) fn commit() -> String {
    let beside = std::env::current_exe().ok();
    let places = [
        beside.as_deref().and_then(Path::parent),
        Some(Path::new(".")),
    ];
    places
        .into_iter()
        .flatten()
        .find_map(|place| {
            let git = |args: &[&str]| {
                let output = Command::new("git").arg("-C").arg(place).args(args).output();
                let output = output.ok().filter(|output| output.status.success())?;
                Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
            };
            let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
            let changed = git(&["status", "--porcelain", "--untracked-files=no"])
                .is_some_and(|changes| !changes.is_empty());
            Some(if changed {
                format!("{commit}-dirty")
            } else {
                commit
            })
        })
        .unwrap_or_else(|| "unknown".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields() {
        assert_eq!(
            field("a\t: b\nMemTotal:  12 kB\n", "MemTotal"),
            Some("12 kB")
        );
        assert_eq!(field("a: b", "c"), None);
    }

    #[test]
    fn describes_this_machine() {
        let machine = Machine::describe(Some(Path::new("/")));
        assert!(machine.cores > 0 && machine.memory_gib > 0.0);
        assert_ne!(machine.file_system, "");
    }
}
