//! portolan-dns: the cluster's DNS server, as a library.
//!
//! [`zone`] follows the World and holds what every name answers; [`answer`] turns a query into a response with it. Both
//! are pure. Everything else is the I/O around them: [`server`] listens, [`forward`] asks upstreams what is not ours,
//! [`cache`] keeps what they say.
//!
//! It never writes to the API server, and never answers or forwards a name of its own zones before it knows them all.

pub mod answer;
pub mod ask;
pub mod cache;
pub mod config;
pub mod corefile;
pub mod forward;
pub mod handover;
pub mod metrics;
pub mod nodelocal;
pub mod plant;
pub mod rules;
pub mod run;
pub mod server;
pub mod settings;
pub mod zone;

pub use zone::ZoneConfig;
