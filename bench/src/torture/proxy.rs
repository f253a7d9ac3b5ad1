//! Proxies before members' peer ports, for machines where namespaces are not to be had.
//!
//! Who a connection is from is told by the system: the socket at its other end is one of
//! that member's process. What a cut link holds back comes late, not never, as it does
//! over TCP on a link that drops packets for a while.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::network::{Place, usage};
use crate::error::Result;

/// Bytes carried over at a time.
const CHUNK_BYTES: usize = 64 << 10;

/// What is cut: links, and members altogether.
#[derive(Debug, Clone, Default)]
struct Cuts {
    links: BTreeSet<(usize, usize)>,
    members: BTreeSet<usize>,
}

impl Cuts {
    fn holds_back(&self, from: Option<usize>, to: Option<usize>) -> bool {
        let is_down = |member: Option<usize>| member.is_some_and(|m| self.members.contains(&m));
        let is_cut = from.zip(to).is_some_and(|link| self.links.contains(&link));
        is_cut || is_down(from) || is_down(to)
    }
}

/// All proxies of a run. They end with the runtime.
pub(super) struct Proxies {
    cuts: watch::Sender<Cuts>,
    processes: Mutex<Vec<Option<u32>>>,
    /// Where each member's proxy listens.
    fronts: Vec<String>,
    /// Where each member listens for members, once that is known.
    behind: watch::Sender<Vec<String>>,
    /// Dropped, and so ended, with this.
    tasks: Mutex<JoinSet<()>>,
}

impl Proxies {
    pub(super) async fn start(count: usize) -> Result<Arc<Self>> {
        let mut listeners = Vec::new();
        let mut fronts = Vec::new();
        for _ in 0..count {
            let failed = |error| usage(format!("no port for a proxy: {error}"));
            let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
            fronts.push(listener.local_addr().map_err(failed)?.to_string());
            listeners.push(listener);
        }
        let proxies = Arc::new(Self {
            cuts: watch::channel(Cuts::default()).0,
            processes: Mutex::new(vec![None; count]),
            fronts,
            behind: watch::channel(Vec::new()).0,
            tasks: Mutex::default(),
        });
        for (to, listener) in listeners.into_iter().enumerate() {
            // Not the other way round too: it would never be dropped.
            let shared = Arc::downgrade(&proxies);
            proxies.lock_tasks().spawn(async move {
                let mut connections = JoinSet::new();
                while let Ok((stream, address)) = listener.accept().await {
                    let Some(proxies) = shared.upgrade() else {
                        return;
                    };
                    let (cuts, behind) = (proxies.cuts.subscribe(), proxies.behind.subscribe());
                    let processes = proxies.lock_processes().clone();
                    connections.spawn(async move {
                        let from = owner(address.port(), &processes);
                        let behind = behind.borrow().get(to).cloned();
                        if let Some(behind) = behind
                            && let Ok(inner) = TcpStream::connect(behind).await
                        {
                            carry(stream, inner, cuts, from, to).await;
                        }
                    });
                    while connections.try_join_next().is_some() {}
                }
            });
        }
        Ok(proxies)
    }

    fn lock_tasks(&self) -> std::sync::MutexGuard<'_, JoinSet<()>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_processes(&self) -> std::sync::MutexGuard<'_, Vec<Option<u32>>> {
        self.processes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Members on loopback. `ports` are free.
    pub(super) fn places(&self, ports: &[u16]) -> Result<Vec<Place>> {
        let peers = crate::spawn::free_ports(ports.len() * 2)?;
        let mut peers = peers.into_iter().filter(|port| !ports.contains(port));
        let mut places = Vec::new();
        for (front, port) in self.fronts.iter().zip(ports) {
            let peer = peers.next().unwrap_or_default();
            places.push(Place {
                client: format!("127.0.0.1:{port}"),
                peer: format!("127.0.0.1:{peer}"),
                advertised_peer: front.clone(),
                prefix: Vec::new(),
            });
        }
        self.behind
            .send_replace(places.iter().map(|place| place.peer.clone()).collect());
        Ok(places)
    }

    pub(super) fn note_process(&self, member: usize, process: Option<u32>) {
        self.lock_processes()[member] = process;
    }

    pub(super) fn set_cut(&self, from: usize, to: usize, is_cut: bool) {
        self.cuts.send_modify(|cuts| {
            match is_cut {
                true => cuts.links.insert((from, to)),
                false => cuts.links.remove(&(from, to)),
            };
        });
    }

    pub(super) fn set_down(&self, member: usize, is_down: bool) {
        self.cuts.send_modify(|cuts| {
            match is_down {
                true => cuts.members.insert(member),
                false => cuts.members.remove(&member),
            };
        });
    }
}

/// Carries both directions of a connection, until one of them ends.
async fn carry(
    outer: TcpStream,
    inner: TcpStream,
    cuts: watch::Receiver<Cuts>,
    from: Option<usize>,
    to: usize,
) {
    let _ = (outer.set_nodelay(true), inner.set_nodelay(true));
    let (outer_read, outer_write) = outer.into_split();
    let (inner_read, inner_write) = inner.into_split();
    tokio::select! {
        () = carry_one_way(outer_read, inner_write, cuts.clone(), from, Some(to)) => {}
        () = carry_one_way(inner_read, outer_write, cuts, Some(to), from) => {}
    }
}

async fn carry_one_way(
    mut read: OwnedReadHalf,
    mut write: OwnedWriteHalf,
    mut cuts: watch::Receiver<Cuts>,
    from: Option<usize>,
    to: Option<usize>,
) {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let Ok(length @ 1..) = read.read(&mut buffer).await else {
            return;
        };
        // What it gives back holds a lock, and must not live on.
        let is_over = cuts
            .wait_for(|cuts| !cuts.holds_back(from, to))
            .await
            .is_err();
        if is_over || write.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

/// The member whose process has the socket with this local port on loopback.
fn owner(port: u16, processes: &[Option<u32>]) -> Option<usize> {
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let inode = inode_of(&table, port)?;
    let wanted = format!("socket:[{inode}]");
    processes.iter().position(|process| {
        let Some(process) = process else { return false };
        let Ok(files) = std::fs::read_dir(format!("/proc/{process}/fd")) else {
            return false;
        };
        files
            .flatten()
            .filter_map(|file| std::fs::read_link(file.path()).ok())
            .any(|target| target.as_os_str() == wanted.as_str())
    })
}

/// The inode of the socket with a local port, from `/proc/net/tcp`.
fn inode_of(table: &str, port: u16) -> Option<&str> {
    let suffix = format!(":{port:04X}");
    table.lines().skip(1).find_map(|line| {
        let mut columns = line.split_ascii_whitespace().skip(1);
        let local = columns.next()?;
        let inode = columns.nth(7)?;
        (local.ends_with(&suffix) && inode != "0").then_some(inode)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_found() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   0: 0100007F:1F90 0100007F:A001 01 00000000:00000000 00:00000000 00000000     0        0 4711 1 0\n   1: 0100007F:A001 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0\n";
        assert_eq!(inode_of(table, 0xA001), Some("4712"));
        assert_eq!(inode_of(table, 0x1F90), Some("4711"));
        assert_eq!(inode_of(table, 1), None);
    }

    #[tokio::test]
    async fn the_owner_of_a_connection_is_told_and_a_cut_link_holds_back() {
        let proxies = Proxies::start(2).await.unwrap();
        let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let behind = target.local_addr().unwrap().to_string();
        proxies.behind.send_replace(vec![String::new(), behind]);
        proxies.note_process(0, Some(std::process::id()));
        proxies.set_cut(0, 1, true);
        let mut near = TcpStream::connect(&proxies.fronts[1]).await.unwrap();
        let (mut far, _) = target.accept().await.unwrap();
        near.write_all(b"there").await.unwrap();
        far.write_all(b"back").await.unwrap();
        let mut buffer = [0; 16];
        // The other direction is open.
        assert_eq!(near.read(&mut buffer).await.unwrap(), 4);
        let held =
            tokio::time::timeout(std::time::Duration::from_millis(200), far.read(&mut buffer));
        assert!(held.await.is_err(), "what is cut came through");
        proxies.set_cut(0, 1, false);
        assert_eq!(far.read(&mut buffer).await.unwrap(), 5);
    }
}
