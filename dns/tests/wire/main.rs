//! What portolan-dns says on the wire.

mod contract;
mod fixture;
mod properties;
