//! What portolan-dns says on the wire.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod completion;
mod contract;
mod daemon;
mod edns;
mod encrypted;
mod fixture;
mod forwarding;
mod fuzz;
mod live;
mod multicluster;
mod options;
mod properties;
mod protocol;
mod sockets;
mod transfer;
