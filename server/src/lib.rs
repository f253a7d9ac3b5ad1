//! The Varve node: settings, sockets, and what stands behind them.

pub mod config;
