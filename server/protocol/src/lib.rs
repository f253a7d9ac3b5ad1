//! The bytes that Varve's nodes and clients exchange.
