//! The Varve node.
fn main() {}
