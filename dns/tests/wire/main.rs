//! What portolan-dns says on the wire.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod contract;
mod daemon;
mod fixture;
mod forwarding;
mod live;
mod options;
mod properties;
mod protocol;
mod sockets;
