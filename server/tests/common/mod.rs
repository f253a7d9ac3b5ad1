//! Real node processes on free loopback ports, taken down with the test.
#![allow(dead_code)] // each test file uses its part
#![allow(missing_docs, unreachable_pub)]

pub mod damage;
pub mod fill;
pub mod load;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use varve_client::{Client, ClientConfig};
use varve_types::{PutRequest, RangeRequest};

pub const PATIENCE: Duration = Duration::from_secs(30);

/// A port that nobody listens on, given to nobody else in this process. It lies below
/// those that Linux gives to outgoing connections (from 32768): one of these could be
/// taken between this call and the node's start, or while a node is down.
pub fn free_port() -> u16 {
    const PORTS: std::ops::Range<u32> = 13_000..22_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // Processes that run at the same time begin far from each other.
    let first = std::process::id().wrapping_mul(97);
    loop {
        let given = GIVEN.fetch_add(1, Ordering::Relaxed);
        assert!(given < PORTS.end - PORTS.start, "no free port in {PORTS:?}");
        let place = first.wrapping_add(given) % (PORTS.end - PORTS.start);
        let port = u16::try_from(PORTS.start + place).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Runs the node binary to its end, which must come soon; exit code and what it said.
pub fn run_to_end(arguments: &[&str], directory: &Path) -> (Option<i32>, String) {
    let mut child = command(directory)
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let status = wait_for_exit(&mut child, PATIENCE);
    let mut text = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    (status.code(), text)
}

fn command(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_varve"));
    command.current_dir(directory);
    for (name, _) in std::env::vars() {
        if name.starts_with("VARVE_") {
            command.env_remove(name);
        }
    }
    command
}

fn wait_for_exit(child: &mut Child, patience: Duration) -> ExitStatus {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("the node did not end within {patience:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// One member of a [`Cluster`].
pub struct Member {
    pub name: String,
    pub client_port: u16,
    pub peer_port: u16,
    pub data_dir: PathBuf,
    child: Option<Child>,
    /// `--initial-cluster` and `--initial-cluster-state`, where they differ from the others'.
    pub joins: Option<String>,
    /// Further flags of this one; they win over the others.
    pub extra: Vec<String>,
}

impl Member {
    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.client_port)
    }

    pub fn log_path(&self) -> PathBuf {
        self.data_dir.with_extension("log")
    }

    /// What the process has logged so far, all starts together.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// SIGKILL: no chance to write anything.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn peer_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer_port)
    }

    /// Waits for the process to end by itself.
    pub fn ended(&mut self) -> ExitStatus {
        wait_for_exit(&mut self.child.take().unwrap(), PATIENCE)
    }

    /// Sends a signal by name and waits for the end.
    pub fn signal(&mut self, name: &str) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        let sent = Command::new("kill")
            .args([format!("-{name}"), child.id().to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
        wait_for_exit(&mut child, PATIENCE)
    }

    /// Memory of the process that no file backs.
    pub fn anonymous_bytes(&self) -> usize {
        let id = self.child.as_ref().unwrap().id();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let field = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let kib: usize = field
            .unwrap()
            .trim_end_matches("kB")
            .trim()
            .parse()
            .unwrap();
        kib << 10
    }

    /// One client of this member alone.
    pub fn client(&self) -> Client {
        client(&[self.endpoint()])
    }

    /// A figure of `/metrics` without labels.
    pub fn metric(&self, name: &str) -> f64 {
        let (_, page) = self.get("/metrics");
        let line = page
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {page}"))
            .parse()
            .unwrap()
    }

    /// An HTTP GET; status line and body.
    pub fn get(&self, path: &str) -> (String, String) {
        http_get(self.client_port, path)
    }
}

/// A client with short timeouts.
pub fn client(endpoints: &[String]) -> Client {
    let config = ClientConfig {
        dial_timeout: Duration::from_millis(500),
        ..ClientConfig::default()
    };
    Client::new(endpoints, config).unwrap()
}

pub fn http_get(port: u16, path: &str) -> (String, String) {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
        return ("refused".to_owned(), String::new());
    };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    if stream.write_all(request.as_bytes()).is_err() {
        return ("refused".to_owned(), String::new());
    }
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    (
        head.lines().next().unwrap_or("").to_owned(),
        body.to_owned(),
    )
}

/// Members of one cluster, in a directory of their own.
pub struct Cluster {
    pub members: Vec<Member>,
    pub flags: Vec<String>,
    initial_cluster: String,
    directory: TempDir,
    /// Clusters share a disk and two cores: one after the other.
    _turn: Turn,
}

impl Cluster {
    /// Starts `count` members with further flags, and waits until they serve.
    pub fn start(count: usize, flags: &[&str]) -> Self {
        let mut cluster = Self::prepare(count, flags);
        for index in 0..count {
            cluster.spawn(index);
        }
        cluster.wait_healthy();
        cluster
    }

    /// The same without starting them.
    pub fn prepare(count: usize, flags: &[&str]) -> Self {
        Self::of(count, count, flags)
    }

    /// Starts `founders` of `count` members; the others can join.
    pub fn found(founders: usize, count: usize, flags: &[&str]) -> Self {
        let mut cluster = Self::of(founders, count, flags);
        for index in 0..founders {
            cluster.spawn(index);
        }
        cluster.wait_healthy();
        cluster
    }

    fn of(founders: usize, count: usize, flags: &[&str]) -> Self {
        let turn = Turn::take();
        let directory = tempfile::tempdir().unwrap();
        let members: Vec<_> = (1..=count)
            .map(|number| Member {
                name: format!("n{number}"),
                client_port: free_port(),
                peer_port: free_port(),
                data_dir: directory.path().join(format!("n{number}.varve")),
                child: None,
                joins: None,
                extra: Vec::new(),
            })
            .collect();
        let initial_cluster: Vec<_> = members
            .iter()
            .take(founders)
            .map(|member| format!("{}=http://127.0.0.1:{}", member.name, member.peer_port))
            .collect();
        Self {
            initial_cluster: initial_cluster.join(","),
            members,
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            directory,
            _turn: turn,
        }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The flags of one member.
    pub fn arguments(&self, index: usize) -> Vec<String> {
        let member = &self.members[index];
        let (client, peer) = (member.client_port, member.peer_port);
        let mut arguments: Vec<_> = [
            ("--name", member.name.clone()),
            ("--data-dir", member.data_dir.display().to_string()),
            ("--listen-client-urls", format!("http://127.0.0.1:{client}")),
            (
                "--advertise-client-urls",
                format!("http://127.0.0.1:{client}"),
            ),
            ("--listen-peer-urls", format!("http://127.0.0.1:{peer}")),
            (
                "--initial-advertise-peer-urls",
                format!("http://127.0.0.1:{peer}"),
            ),
            (
                "--initial-cluster",
                member
                    .joins
                    .as_ref()
                    .unwrap_or(&self.initial_cluster)
                    .clone(),
            ),
            (
                "--initial-cluster-state",
                if member.joins.is_some() {
                    "existing"
                } else {
                    "new"
                }
                .to_owned(),
            ),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect();
        arguments.extend(self.flags.iter().cloned());
        arguments.extend(member.extra.iter().cloned());
        arguments
    }

    /// Starts one member.
    pub fn spawn(&mut self, index: usize) {
        let arguments = self.arguments(index);
        let member = &mut self.members[index];
        assert!(member.child.is_none());
        let log = File::options()
            .create(true)
            .append(true)
            .open(member.log_path())
            .unwrap();
        let child = command(self.directory.path())
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        member.child = Some(child);
    }

    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(Member::endpoint).collect()
    }

    /// A client of all members.
    pub fn client(&self) -> Client {
        client(&self.endpoints())
    }

    /// Waits until every running member answers a linearizable read.
    pub fn wait_healthy(&self) {
        for member in self.members.iter().filter(|member| member.is_running()) {
            wait_until(&format!("{} is healthy", member.name), || {
                member.get("/health").0.contains(" 200 ")
            });
        }
    }

    /// The index of the member that leads.
    pub async fn leader(&self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for (index, member) in self.members.iter().enumerate() {
                if !member.is_running() {
                    continue;
                }
                if let Ok(status) = member.client().status(&member.endpoint()).await
                    && status.body.leader == status.header.member_id
                {
                    return index;
                }
            }
            assert!(Instant::now() < deadline, "no leader");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until all running members have the same revision, and compares their hashes.
    pub async fn assert_same_state(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut states = Vec::new();
            for member in self.members.iter().filter(|member| member.is_running()) {
                let hash = member.client().hash_kv(&member.endpoint(), 0).await;
                states.push(
                    hash.ok()
                        .map(|answer| (answer.body.hash_revision, answer.body.hash)),
                );
            }
            if states
                .iter()
                .all(|state| state.is_some() && *state == states[0])
            {
                return;
            }
            assert!(Instant::now() < deadline, "states differ: {states:x?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The right to run a cluster, given back when dropped.
struct Turn;

impl Turn {
    fn take() -> Self {
        while TAKEN.swap(true, Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(10));
        }
        Self
    }
}

static TAKEN: AtomicBool = AtomicBool::new(false);

impl Drop for Turn {
    fn drop(&mut self) {
        TAKEN.store(false, Ordering::Release);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            member.kill();
            if std::thread::panicking() {
                eprintln!("--- log of {}:\n{}", member.name, member.log());
            }
        }
    }
}

/// Waits until something holds.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A put of one key.
pub async fn put(
    client: &Client,
    key: &str,
    value: &str,
) -> Result<i64, varve_client::ClientError> {
    let request = PutRequest {
        key: key.as_bytes(),
        value: value.as_bytes(),
        ..PutRequest::default()
    };
    client
        .put(&request)
        .await
        .map(|answer| answer.header.revision)
}

/// The value of a key, if it is there.
pub async fn get(client: &Client, key: &str) -> Option<String> {
    let found = client.get(key.as_bytes()).await.unwrap();
    found.map(|kv| String::from_utf8(kv.value).unwrap())
}

/// All keys with a prefix.
pub async fn all(client: &Client, prefix: &str) -> Vec<(String, String)> {
    let end = varve_types::KeyRange::prefix_end(prefix.as_bytes());
    let request = RangeRequest {
        key: prefix.as_bytes(),
        range_end: &end,
        ..RangeRequest::default()
    };
    let text = |bytes| String::from_utf8(bytes).unwrap();
    client
        .range(&request)
        .await
        .unwrap()
        .body
        .kvs
        .into_iter()
        .map(|kv| (text(kv.key), text(kv.value)))
        .collect()
}
