//! Answers that leave past the connection's task.
//!
//! Who applied a lone proposal writes its answers to the socket: to wake the task for
//! that costs two wake-ups of threads, which a single client waits for with each put.
//! The task learns of it when it is polled next.
//!
//! Invariant: the socket is written to from here only under the inbox's lock, and only
//! between two polls of a task that has nothing to send itself.
#![allow(unsafe_code)] // a socket by its number

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use socket2::SockRef;
use tokio::net::TcpStream;

use crate::service::Service;

/// The socket of a connection whose task waits.
pub(super) struct Direct {
    socket: RawFd,
    pub(super) service: Arc<Service>,
}

impl Direct {
    /// It must be taken back before `stream` is closed.
    pub(super) fn new(stream: &TcpStream, service: &Arc<Service>) -> Self {
        Self {
            socket: stream.as_raw_fd(),
            service: Arc::clone(service),
        }
    }

    /// Writes as much as the socket takes at once. Never waits: the socket is one of
    /// tokio's.
    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        // SAFETY: the connection owns the stream, and takes this back before each poll,
        // and in `Drop` before the stream is closed: under the lock that is held here.
        let socket = unsafe { BorrowedFd::borrow_raw(self.socket) };
        SockRef::from(&socket).send(bytes)
    }
}
