//! A snapshot of one member, as it comes.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, timeout_at};
use varve_protocol::{Flags, Request, SnapshotCreditRequest, SnapshotRequest};
use varve_types::{Reader, ResponseHeader};

use crate::connection::{CallError, Connection, StreamFrame};
use crate::{ClientConfig, ClientError};

/// Bytes that may be under way.
const WINDOW: u32 = 4 << 20;

/// A snapshot, on a connection of its own; dropping it ends it.
#[derive(Debug)]
pub struct Snapshot {
    connection: Arc<Connection>,
    endpoint: String,
    id: u64,
    frames: UnboundedReceiver<Result<StreamFrame, CallError>>,
    config: ClientConfig,
    is_over: bool,
}

impl Snapshot {
    pub(crate) async fn open(
        connection: Connection,
        endpoint: &str,
        config: &ClientConfig,
    ) -> Result<Self, ClientError> {
        let request = Request::Snapshot(SnapshotRequest { credit: WINDOW });
        let endpoint = endpoint.to_owned();
        match connection.open_stream(&request).await {
            Ok((id, frames)) => Ok(Self {
                connection: Arc::new(connection),
                endpoint,
                id,
                frames,
                config: config.clone(),
                is_over: false,
            }),
            Err(error) => Err(failed(error, &endpoint)),
        }
    }

    /// The next chunk, or `None` after the last one. The command timeout holds for
    /// each chunk.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        if self.is_over {
            return Ok(None);
        }
        let deadline = Instant::now() + self.config.command_timeout;
        let frame = match timeout_at(deadline, self.frames.recv()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => return Err(failed(error, &self.endpoint)),
            Ok(None) | Err(_) => return Err(ClientError::Timeout { cause: None }),
        };
        let malformed = |source| ClientError::MalformedReply {
            endpoint: self.endpoint.clone(),
            source,
        };
        ResponseHeader::decode(&mut Reader::new(&frame.body)).map_err(malformed)?;
        self.is_over = frame.flags.has(Flags::END);
        let chunk = frame.body.slice(ResponseHeader::SIZE..);
        if !self.is_over {
            self.connection
                .tell(&Request::SnapshotCredit(SnapshotCreditRequest {
                    snapshot: self.id,
                    bytes: u32::try_from(chunk.len()).unwrap_or(u32::MAX),
                }));
        }
        Ok(Some(chunk))
    }
}

fn failed(error: CallError, endpoint: &str) -> ClientError {
    match error {
        CallError::Server(error) => ClientError::Server(error),
        CallError::Lost { reason, .. } => ClientError::ConnectionLost {
            endpoint: endpoint.to_owned(),
            reason: reason.to_string(),
        },
    }
}
