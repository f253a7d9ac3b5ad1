//! Watches: cursors over the history, woken by the hub, served by connections.

mod hub;
mod interest;
mod ring;
mod stream;
#[cfg(test)]
mod testing;

pub use hub::Hub;
pub(crate) use hub::Source;
pub(crate) use interest::OwnedRange;
pub(crate) use stream::WatchSet;
