//! The I/O frame that both daemons share: where objects come from, the admin HTTP server, readiness, telemetry, shutdown.
//!
//! A daemon starts a [`source`], applies the batches of its [`source::Feed`] to a [`portolan_model::World`], and serves
//! [`admin`] routes beside it. Nothing here decides how a Service is forwarded or what a name resolves to.

pub mod admin;
pub mod events;
pub mod process;
pub mod readiness;
pub mod shutdown;
pub mod source;
pub mod telemetry;
pub mod version;
