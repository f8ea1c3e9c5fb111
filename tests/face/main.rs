//! What a cluster's operator sees of the daemons: kube-proxy's face, the manifests of `deploy/`, the way from kube-proxy and
//! back, alerts and dashboards. Everything beside the real kube-proxy and a real API server. Needs root and the programs of
//! `cargo xtask kube-assets`.

mod deploy;
mod migration;
mod monitoring;
mod page;
mod parity;
mod site;
