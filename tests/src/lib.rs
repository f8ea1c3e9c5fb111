//! The lab: a whole cluster's network on one machine, for tests and for looking around.
//!
//! Nodes, pods and hosts outside the cluster are network namespaces joined by veth pairs; the real daemons run inside
//! them; scenarios in YAML say what traffic must do. Start with `Lab::builder`.
//!
//! ```no_run
//! # #[cfg(target_os = "linux")] fn main() -> anyhow::Result<()> {
//! use portolan_lab::lab::{Lab, Listen, PodRequest};
//!
//! let lab = Lab::builder().nodes(3).outside(1).build()?;
//! lab.start_pod(&PodRequest {
//!     namespace: "default".into(),
//!     name: "web-1".into(),
//!     node: "node-1".into(),
//!     listen: vec![Listen { protocol: "TCP".into(), port: 8080 }],
//!     ..PodRequest::default()
//! })?;
//! println!("{}", lab.place("node-2")?.output("curl", ["-s", "http://10.244.1.2:8080/"])?);
//! # Ok(()) }
//! # #[cfg(not(target_os = "linux"))] fn main() {}
//! ```
//!
//! The lab never touches an address, route, rule or process outside the namespaces and cgroups that it made itself, and
//! it removes those in every way that it can end. Everything but [`addresses`] needs Linux: this is the one boundary.

pub mod addresses;
#[cfg(target_os = "linux")]
pub mod api;
#[cfg(target_os = "linux")]
pub mod binaries;
#[cfg(target_os = "linux")]
pub mod cgroup;
#[cfg(target_os = "linux")]
pub mod cleanup;
#[cfg(target_os = "linux")]
pub mod cluster;
#[cfg(target_os = "linux")]
pub mod control_plane;
#[cfg(target_os = "linux")]
pub mod daemon;
#[cfg(target_os = "linux")]
pub mod differences;
#[cfg(target_os = "linux")]
pub mod lab;
#[cfg(target_os = "linux")]
pub mod netns;
#[cfg(target_os = "linux")]
pub mod object;
#[cfg(target_os = "linux")]
pub mod probe;
#[cfg(target_os = "linux")]
pub mod process;
#[cfg(target_os = "linux")]
pub mod rows;
#[cfg(target_os = "linux")]
pub mod run;
#[cfg(target_os = "linux")]
pub mod scenario;
#[cfg(target_os = "linux")]
pub mod subject;
