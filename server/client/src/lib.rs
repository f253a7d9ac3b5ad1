//! A pipelining client for Varve.
