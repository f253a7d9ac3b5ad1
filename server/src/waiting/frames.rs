//! The binary protocol of a member that waits.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use varve_protocol::peer::{self, Refusal};
use varve_protocol::{
    Decoder, Empty, ErrorCode, HelloResponse, Request, StatusResponse, WireError,
    encode_connection_error, encode_error, encode_reply, opcode,
};
use varve_types::ResponseHeader;

use super::Notice;
use crate::service::VERSION;

/// Longest request that is read: those that are answered are short, the rest is
/// refused, whatever it is.
const REQUEST_BYTES: usize = 2 << 20;
/// How long what is not read any more is thrown away, so that the last words arrive.
const LINGER: Duration = Duration::from_secs(1);

/// Answers a client until it leaves.
pub(super) async fn serve(mut stream: TcpStream, notice: &Notice) -> io::Result<()> {
    let mut decoder = Decoder::for_requests(REQUEST_BYTES);
    let (mut input, mut out) = (BytesMut::new(), Vec::new());
    loop {
        let next = decoder.next_owned(&mut input);
        let frame = match next {
            Ok(Some(frame)) => frame,
            Ok(None) => {
                stream.write_all(&out).await?;
                out.clear();
                if stream.read_buf(&mut input).await? == 0 {
                    return Ok(());
                }
                continue;
            }
            Err(error) => {
                encode_connection_error(&mut out, &WireError::from(&error));
                return say_last(stream, &out).await;
            }
        };
        let (opcode, id) = (frame.header.opcode, frame.header.request_id);
        answer(&mut out, opcode, id, &frame.body, notice);
    }
}

fn answer(out: &mut Vec<u8>, opcode: u8, id: u64, body: &[u8], notice: &Notice) {
    let header = ResponseHeader {
        cluster_id: notice.cluster_id,
        member_id: notice.member_id,
        ..ResponseHeader::default()
    };
    match Request::decode(opcode, body) {
        Ok(Request::Hello(_)) => {
            let hello = HelloResponse {
                server_version: VERSION.to_owned(),
                cluster_version: VERSION.to_owned(),
                member_name: notice.name.clone(),
                max_request_bytes: REQUEST_BYTES as u64,
            };
            encode_reply(out, opcode::HELLO, id, &header, &hello);
        }
        Ok(Request::Ping(_)) => encode_reply(out, opcode::PING, id, &header, &Empty),
        Ok(Request::Status(_)) => {
            let status = StatusResponse {
                version: VERSION.to_owned(),
                storage_version: VERSION.to_owned(),
                is_learner: notice.damaged_id().is_some(),
                errors: vec![notice.reason()],
                ..StatusResponse::default()
            };
            encode_reply(out, opcode::STATUS, id, &header, &status);
        }
        Ok(_) => {
            let error = WireError::new(ErrorCode::ShuttingDown, notice.reason());
            encode_error(out, opcode, id, &error);
        }
        Err(error) => encode_error(out, opcode, id, &WireError::from(&error)),
    }
}

/// Tells another member that there is nobody to talk to.
pub(super) async fn refuse(stream: TcpStream, notice: &Notice) -> io::Result<()> {
    let mut out = Vec::new();
    peer::encode_refusal(&mut out, &Refusal::Other(notice.reason()));
    say_last(stream, &out).await
}

async fn say_last(mut stream: TcpStream, out: &[u8]) -> io::Result<()> {
    stream.write_all(out).await?;
    stream.shutdown().await?;
    // Closing with unread input would reset the connection and take the frame away.
    let mut rest = [0; 4096];
    let read_rest = async {
        while stream.read(&mut rest).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    timeout(LINGER, read_rest).await.unwrap_or(Ok(()))
}
