//! A connection without anything around it: for load generators and tests.
//!
//! Requests are encoded into one buffer and leave together; replies are handed
//! to a closure as they stand in the read buffer. No task, channel or
//! allocation per request. Matching ids, retrying and timeouts are the caller's.

use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::Interest;
use tokio::net::{TcpStream, ToSocketAddrs};
use varve_protocol::{
    DEFAULT_REPLY_LIMIT, Decoder, Flags, Frame, FrameError, Request, Step, encode_frame, opcode,
};
use varve_types::{PutRequest, RangeRequest};

use crate::ConnectionError;

/// Room for one read.
const READ_BYTES: usize = 256 * 1024;

/// A connection to one node.
#[derive(Debug)]
pub struct RawConnection {
    stream: TcpStream,
    decoder: Decoder,
    /// Encoded requests; the first `sent` bytes are on their way.
    output: Vec<u8>,
    sent: usize,
    input: BytesMut,
}

impl RawConnection {
    /// Connects to `host:port` within `timeout`.
    pub async fn connect(
        address: impl ToSocketAddrs,
        timeout: Duration,
    ) -> Result<Self, ConnectionError> {
        let stream = tokio::time::timeout(timeout, TcpStream::connect(address))
            .await
            .map_err(|_| ConnectionError::DialTimeout(timeout))??;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            decoder: Decoder::new(DEFAULT_REPLY_LIMIT),
            output: Vec::new(),
            sent: 0,
            input: BytesMut::with_capacity(READ_BYTES),
        })
    }

    /// The buffer that requests are encoded into, for use with [`varve_protocol::encode_frame`].
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Bytes queued and not yet given to the socket.
    pub fn unsent(&self) -> usize {
        self.output.len() - self.sent
    }

    /// Queues a request.
    pub fn queue(&mut self, request_id: u64, request: &Request<'_>) {
        let opcode = request.opcode();
        encode_frame(&mut self.output, opcode, Flags::NONE, request_id, |out| {
            request.encode(out);
        });
    }

    /// Queues a put.
    #[inline]
    pub fn queue_put(&mut self, request_id: u64, key: &[u8], value: &[u8]) {
        let put = PutRequest {
            key,
            value,
            ..PutRequest::default()
        };
        encode_frame(
            &mut self.output,
            opcode::PUT,
            Flags::NONE,
            request_id,
            |out| put.encode(out),
        );
    }

    /// Queues a read of one key.
    #[inline]
    pub fn queue_get(&mut self, request_id: u64, key: &[u8], serializable: bool) {
        let range = RangeRequest {
            key,
            serializable,
            ..RangeRequest::default()
        };
        encode_frame(
            &mut self.output,
            opcode::RANGE,
            Flags::NONE,
            request_id,
            |out| range.encode(out),
        );
    }

    /// Gives the socket as much of the queue as it takes at once; whether that was all.
    pub fn try_flush(&mut self) -> Result<bool, ConnectionError> {
        while self.sent < self.output.len() {
            match self.stream.try_write(&self.output[self.sent..]) {
                Ok(0) => return Err(ConnectionError::Closed),
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        self.output.clear();
        self.sent = 0;
        Ok(true)
    }

    /// Sends the whole queue. Use [`RawConnection::receive`] instead where replies may pile up
    /// meanwhile: it sends and receives at the same time.
    pub async fn flush(&mut self) -> Result<(), ConnectionError> {
        while !self.try_flush()? {
            self.stream.writable().await?;
        }
        Ok(())
    }

    /// Hands every reply that can be read at once to `on_reply`; how many there were.
    pub fn try_receive(
        &mut self,
        on_reply: &mut impl FnMut(Frame<'_>),
    ) -> Result<usize, ConnectionError> {
        let mut replies = self.dispatch(on_reply)?;
        loop {
            self.input.reserve(READ_BYTES);
            match self.stream.try_read_buf(&mut self.input) {
                Ok(0) => {
                    self.decoder.finish(&self.input)?;
                    return Err(ConnectionError::Closed);
                }
                Ok(read) => {
                    replies += self.dispatch(on_reply)?;
                    // A read that did not fill the buffer has emptied the socket.
                    if read < READ_BYTES {
                        return Ok(replies);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(replies),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends the queue and waits for replies: returns when at least one was handed to `on_reply`.
    /// Cancel-safe: nothing is lost when the future is dropped.
    pub async fn receive(
        &mut self,
        mut on_reply: impl FnMut(Frame<'_>),
    ) -> Result<usize, ConnectionError> {
        loop {
            let flushed = self.try_flush()?;
            let replies = self.try_receive(&mut on_reply)?;
            if replies > 0 {
                return Ok(replies);
            }
            let interest = match flushed {
                true => Interest::READABLE,
                false => Interest::READABLE | Interest::WRITABLE,
            };
            self.stream.ready(interest).await?;
        }
    }

    fn dispatch(&mut self, on_reply: &mut impl FnMut(Frame<'_>)) -> Result<usize, ConnectionError> {
        let (mut at, mut replies) = (0, 0);
        loop {
            match self.decoder.step(&self.input[at..])? {
                Step::Frame(frame, used) => {
                    if frame.header.opcode == opcode::CONNECTION {
                        return Err(ConnectionError::refused(frame.body));
                    }
                    at += used;
                    replies += 1;
                    on_reply(frame);
                }
                Step::NeedMore(_) => break,
                Step::TooLarge(header, _) => {
                    return Err(ConnectionError::Frame(FrameError::TooLarge {
                        length: header.body_length,
                        limit: DEFAULT_REPLY_LIMIT,
                    }));
                }
                Step::Skipped(used) => at += used,
            }
        }
        self.input.advance(at);
        Ok(replies)
    }
}
