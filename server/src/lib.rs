//! The Varve node: settings, sockets, and what stands behind them.
//!
//! [`config`] reads the settings, [`node`] assembles a node from them. Clients
//! reach it through [`client_port`], which hands a socket to [`connection`] (the
//! binary protocol) or [`http`]; [`watch`] serves watches to connections; [`peer`]
//! carries Raft messages and snapshots between members. [`join`] finds a new member its
//! place, [`heal`] a damaged one, which [`leave`]s first. The replica and the
//! store are `varve_raft`'s and `varve_engine`'s.

mod ask;
pub mod client_port;
mod cluster;
pub mod config;
pub mod connection;
pub mod data_dir;
pub mod heal;
pub mod http;
pub mod join;
pub mod leave;
pub mod metrics;
pub mod node;
pub mod peer;
pub mod rate_limit;
pub mod restore;
pub mod service;
pub mod storage;
pub mod systemd;
pub mod waiting;
pub mod watch;
