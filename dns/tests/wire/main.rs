//! What portolan-dns says on the wire.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod contract;
mod fixture;
mod properties;
