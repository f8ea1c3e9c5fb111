//! The node's service proxy as a library: the sync loop, the backends and what is served around them.
//!
//! The line: `portolan_agent::source` yields events, the World takes them in, `portolan_plan` plans each dirty Service,
//! a [`backend`] makes the kernel (or itself) do what the plans say.

pub mod backend;
pub mod cli;
pub mod command;
pub mod config;
pub mod desired;
pub mod explain;
pub mod health;
pub mod host;
pub mod http;
pub mod lease;
pub mod limits;
pub mod memory;
pub mod metrics;
pub mod page;
#[cfg(target_os = "linux")]
pub mod rivals;
#[cfg(target_os = "linux")]
pub mod sockdiag;
pub mod state;
pub mod sync;
