//! What a member answers that cannot serve yet, as it waits for others: who it is and
//! what it waits for. There is no replica behind it: it has nothing to read, to vote
//! with or to acknowledge.
//!
//! | port | request | answer |
//! |---|---|---|
//! | client | `/health` | 503 with the reason |
//! | client | `/livez` | 200: to start it again would not help |
//! | client | `/readyz` | 503 with the reason |
//! | client | `/metrics` | that it waits |
//! | client | HELLO, PING, STATUS | as ever; the errors of the status name the reason |
//! | client | any other frame | the error 1006: not done here, another member may do it |
//! | peer | `/members` | 503, and who it will be |
//! | peer | a member's hello | refused |

mod frames;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use varve_raft::Healing;

use crate::http::{self, Port};

/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections at once: of clients, and of members. However many clients come, the
/// members that could let this one in find it.
const MAX_CONNECTIONS: usize = 1024;
/// How long a connection may last: whoever asks again connects again.
const LIFETIME: Duration = Duration::from_secs(30);

/// What a member waits for that cannot serve yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waits {
    /// To be put in the place of a damaged member.
    Heals {
        /// Who it was.
        damaged_id: u64,
        /// What was found damaged.
        damage: String,
    },
    /// To be sure that it has never run before.
    IsNew,
}

/// Who waits, and what for.
#[derive(Debug)]
pub struct Notice {
    /// Its name.
    pub name: String,
    /// Its cluster.
    pub cluster_id: u64,
    /// Who it will be.
    pub member_id: u64,
    /// Why it waits.
    pub waits: Waits,
    waits_for: Mutex<String>,
}

impl Notice {
    /// Of a member that heals.
    pub fn heals(name: &str, healing: &Healing) -> Arc<Self> {
        let waits = Waits::Heals {
            damaged_id: healing.damaged_id,
            damage: healing.reason.clone(),
        };
        Self::new(name, (healing.cluster_id, healing.fresh_id), waits)
    }

    /// Of a member that has no data directory yet.
    pub fn is_new(name: &str, cluster_id: u64, member_id: u64) -> Arc<Self> {
        Self::new(name, (cluster_id, member_id), Waits::IsNew)
    }

    fn new(name: &str, (cluster_id, member_id): (u64, u64), waits: Waits) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            cluster_id,
            member_id,
            waits,
            waits_for: Mutex::new("it has just begun".to_owned()),
        })
    }

    /// Notes what is waited for.
    pub fn wait_for(&self, what: String) {
        *self.lock() = what;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, String> {
        self.waits_for
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The whole reason, in one line.
    pub fn reason(&self) -> String {
        let waits_for = self.lock();
        match &self.waits {
            Waits::Heals { damaged_id, damage } => format!(
                "HEALING: member {damaged_id:x} is damaged ({damage}) and is to be replaced by \
                 {:x}; {waits_for}",
                self.member_id
            ),
            Waits::IsNew => format!("member {:x} is new; {waits_for}", self.member_id),
        }
    }

    /// The damaged member, if one heals.
    pub fn damaged_id(&self) -> Option<u64> {
        match &self.waits {
            Waits::Heals { damaged_id, .. } => Some(*damaged_id),
            Waits::IsNew => None,
        }
    }
}

/// The ports while the member waits; they close with it, but for their listeners.
#[derive(Debug)]
pub struct WaitingRoom {
    _tasks: JoinSet<()>,
}

impl WaitingRoom {
    /// Answers on these ports.
    pub fn open(
        clients: &[Arc<TcpListener>],
        members: &[Arc<TcpListener>],
        notice: &Arc<Notice>,
    ) -> Self {
        Self::with_connections(clients, members, notice, MAX_CONNECTIONS)
    }

    fn with_connections(
        clients: &[Arc<TcpListener>],
        members: &[Arc<TcpListener>],
        notice: &Arc<Notice>,
        most: usize,
    ) -> Self {
        let mut tasks = JoinSet::new();
        for (listeners, port) in [(clients, Port::Client), (members, Port::Peer)] {
            let slots = Arc::new(Semaphore::new(most));
            for listener in listeners {
                let (listener, notice) = (Arc::clone(listener), Arc::clone(notice));
                let slots = Arc::clone(&slots);
                tasks.spawn(async move { accept(&listener, port, &notice, &slots).await });
            }
        }
        Self { _tasks: tasks }
    }
}

async fn accept(listener: &TcpListener, port: Port, notice: &Arc<Notice>, slots: &Arc<Semaphore>) {
    // Ends its connections with it.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let Ok(slot) = Arc::clone(slots).try_acquire_owned() else {
                    continue;
                };
                let notice = Arc::clone(notice);
                connections.spawn(async move {
                    let _slot = slot;
                    // Whoever is cut off comes again.
                    let _ = timeout(LIFETIME, serve(stream, port, notice)).await;
                });
            }
            Err(_) => sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn serve(stream: TcpStream, port: Port, notice: Arc<Notice>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Ok(());
    }
    match (first[0].is_ascii_uppercase(), port) {
        (true, _) => http::serve_waiting(notice, stream, port).await,
        (false, Port::Client) => frames::serve(stream, &notice).await?,
        (false, Port::Peer) => frames::refuse(stream, &notice).await?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn listener() -> (Arc<TcpListener>, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (Arc::new(listener), address)
    }

    #[tokio::test]
    async fn clients_do_not_take_the_places_of_members() {
        let ((clients, client_address), (members, member_address)) =
            (listener().await, listener().await);
        let notice = Notice::is_new("a", 1, 2);
        let _room = WaitingRoom::with_connections(&[clients], &[members], &notice, 2);
        let mut held = Vec::new();
        for _ in 0..2 {
            held.push(TcpStream::connect(client_address).await.unwrap());
        }
        // One more is closed: the others have been let in.
        let mut third = TcpStream::connect(client_address).await.unwrap();
        assert_eq!(third.read(&mut [0]).await.unwrap_or(0), 0);
        let mut member = TcpStream::connect(member_address).await.unwrap();
        let request = b"GET /members HTTP/1.0\r\n\r\n";
        member.write_all(request).await.unwrap();
        let mut answer = String::new();
        member.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("\"newId\":\"2\""), "{answer}");
    }
}
