//! Real node processes in a temporary folder, gone when the cluster is dropped.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::cli::{SpawnArgs, TargetKind};
use crate::error::{BenchError, Result};
use crate::http;

/// How long a cluster may take to elect a leader and serve.
const HEALTH_PATIENCE: Duration = Duration::from_secs(60);
/// How long a node may take to shut down before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// Lines of a failed node's log that go into the error.
const LOG_TAIL_LINES: usize = 15;
/// Ports are looked for from here on: above those that etcd and Varve use by
/// default, below those that the kernel gives to outgoing connections.
const FIRST_PORT: u16 = 26_790;
const LAST_PORT: u16 = 32_000;

struct Node {
    name: String,
    endpoint: String,
    log: PathBuf,
    child: Child,
}

/// A running cluster.
pub(crate) struct Cluster {
    nodes: Vec<Node>,
    /// Declared after the nodes: dropped, and so removed, when they are gone.
    folder: Option<TempDir>,
    path: PathBuf,
}

impl Cluster {
    /// Starts `count` nodes and waits until each says that it is healthy.
    pub(crate) async fn start(
        target: TargetKind,
        binary: &Path,
        count: usize,
        args: &SpawnArgs,
    ) -> Result<Self> {
        if count == 0 {
            return Err(BenchError::Usage(
                "a cluster needs at least one node".into(),
            ));
        }
        let prefix = format!("varve-bench-{}-", target.name());
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix);
        let folder = match &args.dir {
            Some(dir) => builder.tempdir_in(dir),
            None => builder.tempdir(),
        }
        .map_err(|source| BenchError::Io {
            action: "make a temporary folder in",
            path: args.dir.clone().unwrap_or_else(std::env::temp_dir),
            source,
        })?;
        let path = folder.path().to_owned();
        let folder = if args.keep {
            println!(
                "{}: data and logs stay in {}",
                target.name(),
                path.display()
            );
            let _ = folder.keep();
            None
        } else {
            Some(folder)
        };
        let mut cluster = Self {
            nodes: Vec::with_capacity(count),
            folder,
            path,
        };
        let ports = free_ports(count * 2)?;
        let peers: Vec<String> = (0..count)
            .map(|node| format!("n{}=http://127.0.0.1:{}", node + 1, ports[node * 2 + 1]))
            .collect();
        let extra = match target {
            TargetKind::Varve => &args.varve_arg,
            TargetKind::Etcd => &args.etcd_arg,
        };
        for node in 0..count {
            let started = start_node(binary, &cluster.path, node, ports[node * 2], &peers, extra)?;
            cluster.nodes.push(started);
        }
        cluster.wait_healthy().await?;
        Ok(cluster)
    }

    /// The client endpoints.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.nodes
            .iter()
            .map(|node| node.endpoint.clone())
            .collect()
    }

    /// Where the nodes keep their data.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Fails if a node has ended by itself.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            if let Ok(Some(status)) = node.child.try_wait() {
                return Err(node_error(node, format!("ended with {status}")));
            }
        }
        Ok(())
    }

    async fn wait_healthy(&mut self) -> Result<()> {
        let give_up_at = Instant::now() + HEALTH_PATIENCE;
        for index in 0..self.nodes.len() {
            loop {
                self.check_alive()?;
                let node = &self.nodes[index];
                let answer = http::get(&node.endpoint, "/health").await;
                if let Ok((200, body)) = &answer
                    && body.contains("true")
                {
                    break;
                }
                if Instant::now() >= give_up_at {
                    let last = match answer {
                        Ok((status, body)) => format!("{status} {}", body.trim()),
                        Err(what) => what,
                    };
                    let seconds = HEALTH_PATIENCE.as_secs();
                    let what = format!("is not healthy after {seconds} s ({last})");
                    return Err(node_error(node, what));
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }
}

impl Drop for Cluster {
    /// Asks every node to stop, and kills those that do not.
    fn drop(&mut self) {
        for node in &self.nodes {
            if let Some(pid) = Pid::from_raw(node.child.id() as i32) {
                // A node that is gone already is what is wanted.
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        let kill_at = Instant::now() + STOP_PATIENCE;
        for node in &mut self.nodes {
            while let Ok(None) = node.child.try_wait() {
                if Instant::now() >= kill_at {
                    eprintln!("varve-bench: node {} does not stop, killing it", node.name);
                    let _ = node.child.kill();
                    let _ = node.child.wait();
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        drop(self.folder.take());
    }
}

fn start_node(
    binary: &Path,
    folder: &Path,
    index: usize,
    client_port: u16,
    peers: &[String],
    extra: &[String],
) -> Result<Node> {
    let name = format!("n{}", index + 1);
    let client = format!("http://127.0.0.1:{client_port}");
    let peer = peers[index]
        .split_once('=')
        .map_or("", |(_, url)| url)
        .to_owned();
    let log = folder.join(format!("{name}.log"));
    let log_error = |source| BenchError::Io {
        action: "create",
        path: log.clone(),
        source,
    };
    let output = File::create(&log).map_err(log_error)?;
    let errors = output.try_clone().map_err(log_error)?;
    // The flags are the same for etcd and Varve.
    let child = Command::new(binary)
        .arg(format!("--name={name}"))
        .arg(format!("--data-dir={}", folder.join(&name).display()))
        .arg(format!("--listen-client-urls={client}"))
        .arg(format!("--advertise-client-urls={client}"))
        .arg(format!("--listen-peer-urls={peer}"))
        .arg(format!("--initial-advertise-peer-urls={peer}"))
        .arg(format!("--initial-cluster={}", peers.join(",")))
        .arg("--initial-cluster-token=varve-bench")
        .arg("--initial-cluster-state=new")
        .args(extra)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .spawn()
        .map_err(|source| BenchError::Io {
            action: "start",
            path: binary.to_owned(),
            source,
        })?;
    Ok(Node {
        name,
        endpoint: format!("127.0.0.1:{client_port}"),
        log,
        child,
    })
}

fn node_error(node: &Node, what: String) -> BenchError {
    let text = std::fs::read_to_string(&node.log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    BenchError::Node {
        name: node.name.clone(),
        what,
        log: node.log.clone(),
        log_tail: lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n"),
    }
}

/// Ports that nobody listens on now, the start of the search differing by process.
pub(crate) fn free_ports(count: usize) -> Result<Vec<u16>> {
    let span = LAST_PORT - FIRST_PORT;
    let start = (std::process::id() % u32::from(span)) as u16;
    let mut held = Vec::with_capacity(count);
    for step in 0..span {
        let port = FIRST_PORT + (start + step) % span;
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            held.push((port, listener));
            if held.len() == count {
                return Ok(held.into_iter().map(|(port, _)| port).collect());
            }
        }
    }
    Err(BenchError::Usage(format!(
        "fewer than {count} free ports between {FIRST_PORT} and {LAST_PORT}"
    )))
}

/// The node binary: as told, or beside this one, or one folder up (for test binaries).
pub(crate) fn varve_binary(told: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = told {
        return Ok(path.to_owned());
    }
    let own = std::env::current_exe().map_err(|source| BenchError::Io {
        action: "find",
        path: "varve-bench".into(),
        source,
    })?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("varve"))
        .find(|path| path.is_file())
        .ok_or_else(|| {
            BenchError::Usage(format!(
                "no `varve` beside {}: build it with `cargo build --release -p varve`, or say where it is with --varve PATH",
                own.display()
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_and_different() {
        let mut ports = free_ports(6).unwrap();
        ports.dedup();
        assert_eq!(ports.len(), 6);
    }

    #[tokio::test]
    async fn a_node_that_ends_is_reported_with_its_log() {
        let args = SpawnArgs {
            varve: None,
            varve_arg: Vec::new(),
            etcd_arg: Vec::new(),
            dir: None,
            keep: false,
        };
        let started = Cluster::start(TargetKind::Varve, Path::new("false"), 1, &args).await;
        let Err(BenchError::Node { what, .. }) = started else {
            panic!("`false` does not serve")
        };
        assert!(what.contains("ended with"), "{what}");
        let missing = Path::new("/nonexistent/varve");
        let started = Cluster::start(TargetKind::Varve, missing, 1, &args).await;
        assert!(matches!(started, Err(BenchError::Io { .. })));
    }
}
