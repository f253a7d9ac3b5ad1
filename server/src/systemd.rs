//! Telling systemd (`Type=notify`) that the node serves, or stops.
//!
//! The protocol is one datagram to the socket that `NOTIFY_SOCKET` names; see
//! sd_notify(3). A path that starts with `@` is an abstract socket.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The node serves.
pub const READY: &str = "READY=1";
/// The node is going to end.
pub const STOPPING: &str = "STOPPING=1";

/// Sends `state` to systemd, if it started this process.
pub fn notify(state: &str) {
    if let Some(socket) = std::env::var_os("NOTIFY_SOCKET")
        && let Err(error) = send(&socket, state)
    {
        tracing::warn!("cannot tell systemd {state}: {error}");
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sends_to_path_and_abstract_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let abstract_name = format!("varve-test-{}", std::process::id());
        let sockets = [
            UnixDatagram::bind(&path).unwrap(),
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&abstract_name).unwrap())
                .unwrap(),
        ];
        let names = [path.into_os_string(), format!("@{abstract_name}").into()];
        for (socket, name) in sockets.iter().zip(names) {
            send(&name, READY).unwrap();
            let mut buffer = [0; 64];
            let read = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..read], b"READY=1");
        }
        assert!(send(OsStr::new("/no/such/socket"), READY).is_err());
    }
}
