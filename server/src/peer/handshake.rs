//! How two members find out that they belong together.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use varve_protocol::peer::{self, Channel, PeerFrame, PeerHello, Refusal};
use varve_protocol::{DEFAULT_PEER_LIMIT, Decoder, FrameError, OwnedFrame, RequestError};

use super::{MAX_NEWCOMERS, Shared, TIMEOUT};
use crate::config::Url;
use crate::service::VERSION;

/// A dead host is noticed when sent bytes are not acknowledged for this long.
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);
/// On a connection that is silent for this long the kernel asks whether the other host is
/// still there, and asks again after each further second.
const SILENT: Duration = Duration::from_secs(5);
const ASK_AGAIN: Duration = Duration::from_secs(1);
const READ_BYTES: usize = 64 << 10;
/// Longest hello: nothing larger is buffered for whoever has not said who it is.
const HELLO_LIMIT: usize = 4 << 10;

/// Why there is no connection between two members.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("no answer within {TIMEOUT:?}")]
    Timeout,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Malformed(#[from] RequestError),
    #[error("unexpected frame with opcode {0}")]
    Unexpected(u8),
    /// We do not want the other side.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The other side does not want us.
    #[error("the other member refused: {0}")]
    RefusedByPeer(Refusal),
    #[error("no peer URL of member {0:x} is known")]
    NoUrl(u64),
    /// The receiver of a snapshot will not take it, later either.
    #[error("{0}")]
    SnapshotRefused(String),
    #[error("{0}")]
    Other(String),
    #[error("replaced by a newer connection")]
    Replaced,
}

/// Reads frames of the peer protocol.
pub(super) struct FrameReader<R> {
    stream: R,
    decoder: Decoder,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(stream: R) -> Self {
        Self::with_limit(stream, DEFAULT_PEER_LIMIT)
    }

    fn with_limit(stream: R, limit: usize) -> Self {
        Self {
            stream,
            decoder: Decoder::new(limit),
            buffer: BytesMut::new(),
        }
    }

    /// The next frame; `None` where the stream ends between two. Safe to drop
    /// before it is ready: nothing that was read is lost.
    pub(super) async fn next(&mut self) -> Result<Option<OwnedFrame>, PeerError> {
        loop {
            if let Some(frame) = self.decoder.next_owned(&mut self.buffer)? {
                return Ok(Some(frame));
            }
            self.buffer.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                self.decoder.finish(&self.buffer)?;
                return Ok(None);
            }
        }
    }

    /// Bytes received but not yet taken.
    pub(super) fn buffered(&self) -> usize {
        self.buffer.len()
    }
}

/// Connects to a member and exchanges hellos.
pub(super) async fn connect(
    shared: &Shared,
    to: u64,
    channel: Channel,
) -> Result<TcpStream, PeerError> {
    let mut last = PeerError::NoUrl(to);
    for url in shared.urls_of(to) {
        match timeout(TIMEOUT, connect_to(shared, to, channel, &url)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = PeerError::Timeout,
        }
    }
    Err(last)
}

async fn connect_to(
    shared: &Shared,
    to: u64,
    channel: Channel,
    url: &str,
) -> Result<TcpStream, PeerError> {
    let url = Url::parse(url).map_err(PeerError::Other)?;
    let mut stream = TcpStream::connect(url.authority()).await?;
    prepare(&stream)?;
    let mut hello = Vec::new();
    peer::encode_hello(
        &mut hello,
        &PeerHello {
            cluster_id: shared.cluster_id(),
            from: shared.member_id(),
            to,
            channel,
            server_version: VERSION.to_owned(),
            peer_urls: shared.own_urls(),
        },
    );
    stream.write_all(&hello).await?;
    let mut reader = FrameReader::with_limit(&mut stream, HELLO_LIMIT);
    let frame = reader
        .next()
        .await?
        .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
    match PeerFrame::decode(frame.header.opcode, &frame.body)? {
        PeerFrame::Hello(hello) => {
            check_cluster(shared, &hello)?;
            if hello.from != to {
                // Some other member of the cluster answers at this URL.
                return Err(PeerError::Refused(Refusal::MemberMismatch {
                    ours: to,
                    wanted: hello.from,
                }));
            }
        }
        PeerFrame::Refused(refusal) => return Err(PeerError::RefusedByPeer(refusal)),
        _ => return Err(PeerError::Unexpected(frame.header.opcode)),
    }
    Ok(stream)
}

/// Settings of every connection between members.
pub(super) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(SILENT)
        .with_interval(ASK_AGAIN);
    socket.set_tcp_keepalive(&keepalive)?;
    // Bounds the questions too: they are not answered for this long, and the connection ends.
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))
}

fn check_cluster(shared: &Shared, hello: &PeerHello) -> Result<(), PeerError> {
    if hello.cluster_id == shared.cluster_id() {
        return Ok(());
    }
    Err(PeerError::Refused(Refusal::ClusterMismatch {
        ours: shared.cluster_id(),
        theirs: hello.cluster_id,
    }))
}

/// Reads the hello of a member that connected, checks it, and answers.
pub(super) async fn welcome(
    shared: &Shared,
    stream: &mut TcpStream,
) -> Result<PeerHello, PeerError> {
    let greeting = async {
        let mut reader = FrameReader::with_limit(&mut *stream, HELLO_LIMIT);
        let frame = reader
            .next()
            .await?
            .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        // Nothing follows a hello before it is answered.
        if reader.buffered() > 0 {
            return Err(PeerError::Unexpected(frame.header.opcode));
        }
        match PeerFrame::decode(frame.header.opcode, &frame.body)? {
            PeerFrame::Hello(hello) => Ok(hello),
            _ => Err(PeerError::Unexpected(frame.header.opcode)),
        }
    };
    let hello = timeout(TIMEOUT, greeting)
        .await
        .map_err(|_| PeerError::Timeout)??;
    check_cluster(shared, &hello)?;
    if hello.to != shared.member_id() {
        return Err(PeerError::Refused(Refusal::MemberMismatch {
            ours: shared.member_id(),
            wanted: hello.to,
        }));
    }
    check_member(shared, &hello)?;
    let mut answer = Vec::new();
    peer::encode_hello(
        &mut answer,
        &PeerHello {
            cluster_id: shared.cluster_id(),
            from: shared.member_id(),
            to: hello.from,
            channel: hello.channel,
            server_version: VERSION.to_owned(),
            peer_urls: shared.own_urls(),
        },
    );
    timeout(TIMEOUT, stream.write_all(&answer))
        .await
        .map_err(|_| PeerError::Timeout)??;
    Ok(hello)
}

/// Lets members in, and those of whom this one may not have heard yet: they joined
/// after what it has applied, which a leader would know.
fn check_member(shared: &Shared, hello: &PeerHello) -> Result<(), PeerError> {
    let member = hello.from;
    let unknown = Err(PeerError::Refused(Refusal::UnknownMember { member }));
    let Some(node) = shared.node.get().filter(|node| node.member_id() != member) else {
        return unknown;
    };
    let members = node.members();
    if members.is_removed(member) {
        return Err(PeerError::Refused(Refusal::Removed { member }));
    }
    if members.get(member).is_some() {
        return Ok(());
    }
    let leads = node.status().leader == node.member_id();
    let urls_fit = hello.peer_urls.iter().all(|url| Url::parse(url).is_ok());
    let mut newcomers = shared.newcomers();
    let has_room = newcomers.len() < MAX_NEWCOMERS || newcomers.contains_key(&member);
    if leads || hello.peer_urls.is_empty() || !urls_fit || !has_room {
        return unknown;
    }
    newcomers.insert(member, hello.peer_urls.clone());
    Ok(())
}

/// What a refused connection is told before it is closed.
pub(super) fn refusal_of(error: &PeerError) -> Refusal {
    match error {
        PeerError::Refused(refusal) => refusal.clone(),
        PeerError::Frame(FrameError::UnsupportedVersion { version }) => {
            Refusal::Version(version.to_string())
        }
        error => Refusal::Other(error.to_string()),
    }
}
