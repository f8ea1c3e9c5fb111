//! nf_tables over netlink: messages, attributes, expressions, batches and dumps.
//!
//! Knows the kernel's format and nothing about Services. No library in C and no `nft` process: what is sent is what is
//! written here. Replies come from outside and never panic.

pub(crate) mod attr;
pub(crate) mod batch;
pub(crate) mod constants;
pub(crate) mod dump;
pub(crate) mod expr;
pub(crate) mod listing;
pub(crate) mod message;
pub(crate) mod object;
pub(crate) mod socket;
pub(crate) mod userdata;
