//! What members reach each other over, so that links can be cut, in one direction too.
//!
//! With root each member has a network namespace: a cut link drops packets where they
//! arrive, and a link that is down is down. Without, there is a proxy before each
//! member's peer port, which holds back what comes from a member whose link is cut.

use std::sync::Arc;

use super::proxy::Proxies;
use super::shell;
use crate::error::{BenchError, Result};
use crate::spawn::free_ports;

/// Routing rules: what is dropped comes before what is delivered.
const DROP_PREFERENCE: u32 = 50;
const LOCAL_PREFERENCE: u32 = 100;

/// Where a member is.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// `host:port` for clients.
    pub(super) client: String,
    /// Where it listens for members.
    pub(super) peer: String,
    /// Where members find it.
    pub(super) advertised_peer: String,
    /// What its command line begins with.
    pub(super) prefix: Vec<String>,
}

/// The network of one run.
pub(super) enum Network {
    Namespaces(Namespaces),
    Proxies(Arc<Proxies>),
}

impl Network {
    /// Namespaces where they can be had; else why not, with proxies.
    pub(super) async fn new(count: usize, may_use_root: bool) -> Result<(Self, Option<String>)> {
        let reason = match shell::may_use_root(may_use_root) {
            Err(reason) => reason.to_owned(),
            Ok(()) => match Namespaces::new(count).await {
                Ok(namespaces) => return Ok((Self::Namespaces(namespaces), None)),
                Err(reason) => reason,
            },
        };
        Ok((Self::Proxies(Proxies::start(count).await?), Some(reason)))
    }

    pub(super) fn describe(&self) -> &'static str {
        match self {
            Self::Namespaces(_) => "a namespace for each member (veth, bridge, routing rules)",
            Self::Proxies(_) => "loopback, with a proxy before each member's peer port",
        }
    }

    pub(super) fn places(&self, count: usize) -> Result<Vec<Place>> {
        match self {
            Self::Namespaces(namespaces) => Ok(namespaces.places(count)),
            Self::Proxies(proxies) => proxies.places(&free_ports(count)?),
        }
    }

    /// A member's process, by which a proxy knows its connections.
    pub(super) fn note_process(&self, member: usize, process: Option<u32>) {
        if let Self::Proxies(proxies) = self {
            proxies.note_process(member, process);
        }
    }

    /// Nothing of what `from` sends reaches `to`.
    pub(super) async fn cut(&self, from: usize, to: usize) -> std::result::Result<(), String> {
        match self {
            Self::Namespaces(namespaces) => namespaces.rule("add", from, to).await,
            Self::Proxies(proxies) => {
                proxies.set_cut(from, to, true);
                Ok(())
            }
        }
    }

    pub(super) async fn mend(&self, from: usize, to: usize) -> std::result::Result<(), String> {
        match self {
            Self::Namespaces(namespaces) => namespaces.rule("del", from, to).await,
            Self::Proxies(proxies) => {
                proxies.set_cut(from, to, false);
                Ok(())
            }
        }
    }

    /// A member's only link goes down, or up again: the one to its clients as well, where
    /// there is a link.
    pub(super) async fn link(&self, member: usize, up: bool) -> std::result::Result<(), String> {
        match self {
            Self::Namespaces(namespaces) => namespaces.link(member, up).await,
            Self::Proxies(proxies) => {
                proxies.set_down(member, !up);
                Ok(())
            }
        }
    }
}

/// Namespaces, their links, and the bridge between them; removed when dropped.
pub(super) struct Namespaces {
    /// Names begin with it.
    prefix: String,
    /// The first three numbers of all addresses.
    subnet: String,
    count: usize,
}

impl Namespaces {
    async fn new(count: usize) -> std::result::Result<Self, String> {
        let id = std::process::id();
        let made = Self {
            prefix: format!("vt{id}"),
            // Not one that a machine is likely to be in.
            subnet: format!("10.{}.{}", 200 + id / 250 % 50, id % 250),
            count,
        };
        // Half of it may be there when something fails: dropped, and so removed.
        made.build().await?;
        Ok(made)
    }

    async fn build(&self) -> std::result::Result<(), String> {
        let Self { prefix, subnet, .. } = self;
        let bridge = format!("{prefix}b");
        shell::run(&format!("ip link add {bridge} type bridge")).await?;
        shell::run(&format!("ip addr add {subnet}.254/24 dev {bridge}")).await?;
        shell::run(&format!("ip link set {bridge} up")).await?;
        for member in 0..self.count {
            let (name, link) = (self.namespace(member), self.link_name(member));
            let address = self.address(member);
            for line in [
                format!("ip netns add {name}"),
                format!("ip link add {link} type veth peer name eth0 netns {name}"),
                format!("ip link set {link} master {bridge} up"),
                format!("ip -n {name} addr add {address}/24 dev eth0"),
                format!("ip -n {name} link set eth0 up"),
                format!("ip -n {name} link set lo up"),
                // Rules must be asked for each packet, and before the local table is.
                format!(
                    "ip netns exec {name} sysctl -qw net.ipv4.tcp_early_demux=0 \
                     net.ipv4.ip_early_demux=0"
                ),
                format!("ip -n {name} rule add pref {LOCAL_PREFERENCE} lookup local"),
                format!("ip -n {name} rule del pref 0"),
            ] {
                shell::run(&line).await?;
            }
        }
        Ok(())
    }

    fn namespace(&self, member: usize) -> String {
        format!("{}n{}", self.prefix, member + 1)
    }

    fn link_name(&self, member: usize) -> String {
        format!("{}v{}", self.prefix, member + 1)
    }

    fn address(&self, member: usize) -> String {
        format!("{}.{}", self.subnet, member + 1)
    }

    fn places(&self, count: usize) -> Vec<Place> {
        let place = |member| {
            let address = self.address(member);
            let name = self.namespace(member);
            Place {
                client: format!("{address}:2379"),
                peer: format!("{address}:2380"),
                advertised_peer: format!("{address}:2380"),
                prefix: ["ip", "netns", "exec", &name].map(str::to_owned).to_vec(),
            }
        };
        (0..count).map(place).collect()
    }

    async fn rule(&self, what: &str, from: usize, to: usize) -> std::result::Result<(), String> {
        let (name, address) = (self.namespace(to), self.address(from));
        shell::run(&format!(
            "ip -n {name} rule {what} from {address} iif eth0 blackhole pref {DROP_PREFERENCE}"
        ))
        .await
    }

    async fn link(&self, member: usize, up: bool) -> std::result::Result<(), String> {
        let direction = if up { "up" } else { "down" };
        let link = self.link_name(member);
        shell::run(&format!("ip link set {link} {direction}")).await
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for member in 0..self.count {
            // A namespace takes its end of the link with it, and so the other one; where it
            // is not there yet, its link may be.
            shell::run_at_the_end(&format!("ip netns del {}", self.namespace(member)));
            shell::run_at_the_end(&format!("ip link del {}", self.link_name(member)));
        }
        shell::run_at_the_end(&format!("ip link del {}b", self.prefix));
    }
}

/// Why something that must work did not.
pub(super) fn usage(what: String) -> BenchError {
    BenchError::Usage(what)
}
