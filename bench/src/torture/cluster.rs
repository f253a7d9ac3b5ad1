//! The members: processes that are started, killed, stopped and replaced.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use varve_client::{Client, ClientConfig};

use super::TortureArgs;
use super::disks::SmallDisk;
use super::network::{Network, Place};
use super::power::{Lost, PowerDisk};
use crate::error::{BenchError, Result};
use crate::http;

/// How long all members may take to serve once nothing is wrong any more.
const HEALTH_PATIENCE: Duration = Duration::from_secs(60);
/// How long a process may take to end when it is asked to.
const END_PATIENCE: Duration = Duration::from_secs(30);
/// Lines of a node's log that go into a report.
const LOG_TAIL_LINES: usize = 15;

/// What a member's command line says of the cluster.
#[derive(Debug, Clone)]
pub(super) struct Joins {
    pub(super) initial_cluster: String,
    pub(super) state: &'static str,
}

/// One member.
pub(super) struct Member {
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) data_dir: PathBuf,
    joins: Joins,
    log: PathBuf,
    child: Option<Child>,
}

/// All of them, and what they stand on. Dropping it removes everything.
pub(super) struct Cluster {
    pub(super) members: Vec<Member>,
    /// Over the disks: dropped before them.
    power: Vec<Arc<PowerDisk>>,
    pub(super) disks: Vec<SmallDisk>,
    pub(super) network: Network,
    why_no_namespaces: Option<String>,
    why_no_disks: Option<String>,
    why_no_power_loss: Option<String>,
    binary: PathBuf,
    extra: Vec<String>,
    /// The last field: it goes when nothing is mounted in it any more.
    folder: Option<TempDir>,
    path: PathBuf,
}

impl Cluster {
    /// Starts the members and waits until they serve.
    pub(super) async fn start(args: &TortureArgs, binary: &Path) -> Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("varve-torture-");
        let folder = match &args.dir {
            Some(dir) => builder.tempdir_in(dir),
            None => builder.tempdir(),
        };
        let folder = folder.map_err(|source| BenchError::Io {
            action: "make a temporary folder in",
            path: args.dir.clone().unwrap_or_else(std::env::temp_dir),
            source,
        })?;
        let count = args.nodes;
        let (network, why_no_namespaces) = Network::new(count, !args.no_root).await?;
        let places = network.places(count)?;
        let mut cluster = Self {
            members: Vec::new(),
            power: Vec::new(),
            disks: Vec::new(),
            network,
            why_no_namespaces,
            why_no_disks: super::shell::may_use_root(!args.no_root)
                .err()
                .map(str::to_owned),
            why_no_power_loss: super::shell::may_use_root(!args.no_root)
                .err()
                .map(str::to_owned),
            binary: binary.to_owned(),
            extra: args.varve_arg.clone(),
            path: folder.path().to_owned(),
            folder: Some(folder),
        };
        for member in 0..count {
            if cluster.why_no_disks.is_none() {
                match SmallDisk::new(&cluster.path, &format!("n{}", member + 1)).await {
                    Ok(disk) => cluster.disks.push(disk),
                    Err(reason) => {
                        cluster.why_no_disks = Some(reason);
                        cluster.disks.clear();
                    }
                }
            }
        }
        for member in 0..count {
            if cluster.why_no_power_loss.is_none() {
                let name = format!("n{}", member + 1);
                let below = match cluster.disks.get(member) {
                    Some(disk) => disk.path().join("files"),
                    None => cluster.path.join(format!("{name}.files")),
                };
                match PowerDisk::new(&cluster.path, &name, &below) {
                    Ok(disk) => cluster.power.push(Arc::new(disk)),
                    Err(reason) => {
                        cluster.why_no_power_loss = Some(reason);
                        cluster.power.clear();
                    }
                }
            }
        }
        let names: Vec<_> = (1..=count).map(|number| format!("n{number}")).collect();
        let urls = names
            .iter()
            .zip(&places)
            .map(|(name, place)| format!("{name}=http://{}", place.advertised_peer));
        let initial_cluster = urls.collect::<Vec<_>>().join(",");
        for (index, (name, place)) in names.into_iter().zip(places).enumerate() {
            let data_dir = match (cluster.power.get(index), cluster.disks.get(index)) {
                (Some(disk), _) => disk.data_dir(),
                (None, Some(disk)) => disk.path().join("data"),
                (None, None) => cluster.path.join(&name),
            };
            cluster.members.push(Member {
                log: cluster.path.join(format!("{name}.log")),
                name,
                place,
                data_dir,
                joins: Joins {
                    initial_cluster: initial_cluster.clone(),
                    state: "new",
                },
                child: None,
            });
            cluster.spawn(index)?;
        }
        cluster.wait_healthy().await.map_err(BenchError::Usage)?;
        Ok(cluster)
    }

    /// What the run stands on, and what it cannot do.
    pub(super) fn describe(&self, args: &TortureArgs) -> Vec<String> {
        let mut lines = vec![
            format!(
                "varve-bench torture: {} members, {} clients, seed {}, {:?} of faults",
                self.members.len(),
                args.clients,
                args.seed,
                args.duration
            ),
            format!("network: {}", self.network.describe()),
            match self.why_no_disks {
                None => format!("disks: {}", SmallDisk::describe()),
                Some(_) => "disks: folders of the file system that is there".to_owned(),
            },
        ];
        if self.why_no_power_loss.is_none() {
            lines.push("power: what is not synced can be lost (FUSE over each disk)".to_owned());
        }
        lines.extend(
            self.not_available()
                .into_iter()
                .map(|(what, why)| format!("not available: {what} ({why})")),
        );
        lines
    }

    /// Faults that cannot be made here, and why.
    pub(super) fn not_available(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        if let Some(why) = &self.why_no_namespaces {
            found.push(("network namespaces, link down", why.clone()));
        }
        if let Some(why) = &self.why_no_disks {
            found.push((
                "file systems of their own, disk full, disk hangs",
                why.clone(),
            ));
        }
        if let Some(why) = &self.why_no_power_loss {
            found.push(("power loss, power loss of all", why.clone()));
        }
        found
    }

    /// Where everything is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn count(&self) -> usize {
        self.members.len()
    }

    /// The clients' endpoints, beginning with that of one member.
    pub(super) fn endpoints_from(&self, first: usize) -> Vec<String> {
        let all = self.members.iter().map(|m| m.place.client.clone());
        let mut all: Vec<_> = all.collect();
        let count = all.len();
        all.rotate_left(first % count);
        all
    }

    /// A client that begins at one member.
    pub(super) fn client(&self, first: usize, patience: Duration) -> Client {
        let config = ClientConfig {
            dial_timeout: Duration::from_millis(500),
            command_timeout: patience,
            keepalive_time: Duration::from_secs(1),
            keepalive_timeout: Duration::from_secs(2),
            ..ClientConfig::default()
        };
        match Client::new(&self.endpoints_from(first), config) {
            Ok(client) => client,
            Err(error) => unreachable!("the endpoints are written as they must be: {error}"),
        }
    }

    /// Starts a member's process.
    pub(super) fn spawn(&mut self, index: usize) -> Result<()> {
        let member = &mut self.members[index];
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| BenchError::Io {
                action,
                path,
                source,
            }
        };
        let log = File::options()
            .create(true)
            .append(true)
            .open(&member.log)
            .map_err(failed("open", &member.log))?;
        let place = &member.place;
        let mut words = place.prefix.iter().map(String::as_str);
        let mut command = match words.next() {
            None => Command::new(&self.binary),
            Some(program) => {
                let mut command = Command::new(program);
                command.args(words).arg(&self.binary);
                command
            }
        };
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("VARVE_") {
                command.env_remove(name);
            }
        }
        let child = command
            .arg(format!("--name={}", member.name))
            .arg(format!("--data-dir={}", member.data_dir.display()))
            .arg(format!("--listen-client-urls=http://{}", place.client))
            .arg(format!("--advertise-client-urls=http://{}", place.client))
            .arg(format!("--listen-peer-urls=http://{}", place.peer))
            .arg(format!(
                "--initial-advertise-peer-urls=http://{}",
                place.advertised_peer
            ))
            .arg(format!(
                "--initial-cluster={}",
                member.joins.initial_cluster
            ))
            .arg(format!("--initial-cluster-state={}", member.joins.state))
            .arg("--initial-cluster-token=varve-torture")
            .args(&self.extra)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(failed("start", &self.binary))?;
        self.network.note_process(index, Some(child.id()));
        member.child = Some(child);
        Ok(())
    }

    /// Says how a member is to be started from now on.
    pub(super) fn set_joins(&mut self, index: usize, joins: Joins) {
        self.members[index].joins = joins;
    }

    /// Sends a signal, if the process runs.
    pub(super) fn signal(&self, index: usize, signal: Signal) {
        let child = self.members[index].child.as_ref();
        if let Some(pid) = child.and_then(|child| Pid::from_raw(child.id() as i32)) {
            // It may have ended; whoever waits for it finds out.
            let _ = kill_process(pid, signal);
        }
    }

    /// `kill -9`, and waits for the end of the process.
    pub(super) async fn kill(&mut self, index: usize) {
        self.signal(index, Signal::KILL);
        // It ends: what could keep it is undone before.
        let _ = self.ended(index).await;
    }

    /// Whether members can lose power here.
    pub(super) fn can_lose_power(&self) -> bool {
        !self.power.is_empty()
    }

    /// Takes the power from members, all at the same time, and gives it back; their
    /// processes are gone, and by chance of each seed what they had not synced.
    pub(super) async fn lose_power(
        &mut self,
        seeds: &[(usize, u64)],
    ) -> std::result::Result<Lost, String> {
        for (index, _) in seeds {
            self.power[*index].cut();
        }
        for (index, _) in seeds {
            self.signal(*index, Signal::KILL);
        }
        let mut lost = Lost::default();
        for (index, seed) in seeds {
            let disk = self.power[*index].clone();
            disk.release();
            self.ended(*index).await?;
            let seed = *seed;
            // The file system is served by other threads; this one goes on with clients.
            let taken = tokio::task::spawn_blocking(move || disk.lose(seed)).await;
            let taken = taken.map_err(|error| error.to_string())??;
            lost.bytes += taken.bytes;
            lost.names += taken.names;
        }
        Ok(lost)
    }

    /// Waits for the end of a member's process; with which code.
    pub(super) async fn ended(&mut self, index: usize) -> std::result::Result<Option<i32>, String> {
        let deadline = Instant::now() + END_PATIENCE;
        let member = &mut self.members[index];
        let Some(child) = &mut member.child else {
            return Ok(None);
        };
        loop {
            match child.try_wait() {
                Ok(Some(status)) => {
                    member.child = None;
                    self.network.note_process(index, None);
                    return Ok(status.code());
                }
                Ok(None) if Instant::now() < deadline => {}
                _ => return Err(format!("{} does not end", member.name)),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Fails if a process has ended by itself.
    pub(super) fn check_alive(&mut self) -> std::result::Result<(), String> {
        for member in &mut self.members {
            if let Some(child) = &mut member.child
                && let Ok(Some(status)) = child.try_wait()
            {
                let text = std::fs::read_to_string(&member.log).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                let tail = lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n");
                return Err(format!(
                    "{} ended by itself with {status}; the end of its log:\n{tail}",
                    member.name
                ));
            }
        }
        Ok(())
    }

    /// Fails if a member has set files aside as damaged: nothing here damages any.
    pub(super) fn check_whole(&self) -> std::result::Result<(), String> {
        for member in &self.members {
            let Ok(entries) = std::fs::read_dir(&member.data_dir) else {
                continue; // it is being replaced
            };
            for entry in entries.flatten() {
                if entry.file_name().to_string_lossy().starts_with("damaged-") {
                    return Err(format!(
                        "{} took its files for damaged, and nothing damaged them; see its log",
                        member.name
                    ));
                }
            }
        }
        Ok(())
    }

    /// Whether a member says that it leads.
    pub(super) async fn leads(&self, index: usize) -> bool {
        let page = http::get(&self.members[index].place.client, "/metrics").await;
        page.is_ok_and(|(_, page)| page.contains("\netcd_server_is_leader 1\n"))
    }

    pub(super) async fn leader(&self) -> Option<usize> {
        for index in 0..self.count() {
            if self.members[index].child.is_some() && self.leads(index).await {
                return Some(index);
            }
        }
        None
    }

    /// Whether a member answers reads that all must agree on.
    pub(super) async fn is_ready(&self, index: usize) -> bool {
        let answer = http::get(&self.members[index].place.client, "/readyz").await;
        matches!(answer, Ok((200, _)))
    }

    /// Waits until every member is ready.
    pub(super) async fn wait_healthy(&mut self) -> std::result::Result<(), String> {
        let deadline = Instant::now() + HEALTH_PATIENCE;
        for index in 0..self.count() {
            while !self.is_ready(index).await {
                self.check_alive()?;
                if Instant::now() >= deadline {
                    return Err(format!(
                        "{} is not ready {HEALTH_PATIENCE:?} after everything was repaired",
                        self.members[index].name
                    ));
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// Undoes whatever may still be wrong, and waits until all serve.
    pub(super) async fn heal(&mut self) -> std::result::Result<(), String> {
        for disk in &mut self.disks {
            disk.thaw_at_the_end();
            let _ = disk.empty(); // it may not be full
        }
        for index in 0..self.count() {
            self.signal(index, Signal::CONT);
            let _ = self.network.link(index, true).await;
            for other in 0..self.count() {
                let _ = self.network.mend(other, index).await; // it may not be cut
            }
        }
        for index in 0..self.count() {
            if self.members[index].child.is_none() {
                self.spawn(index).map_err(|error| error.to_string())?;
            }
        }
        self.wait_healthy().await
    }

    /// Keeps the logs, not the data.
    pub(super) fn keep_logs(&mut self) -> PathBuf {
        self.end_processes();
        self.power.clear();
        self.disks.clear();
        if let Some(folder) = self.folder.take() {
            let _ = folder.keep();
        }
        for member in &self.members {
            let _ = std::fs::remove_dir_all(&member.data_dir);
            let _ = std::fs::remove_file(self.path.join(format!("{}.image", member.name)));
            let _ = std::fs::remove_dir_all(self.path.join(format!("{}.files", member.name)));
        }
        self.path.clone()
    }

    fn end_processes(&mut self) {
        for disk in &mut self.disks {
            disk.thaw_at_the_end();
        }
        for member in &mut self.members {
            if let Some(child) = &mut member.child {
                let _ = child.kill();
                let _ = child.wait();
            }
            member.child = None;
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.end_processes();
        self.power.clear();
        self.disks.clear();
    }
}
