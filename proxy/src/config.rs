//! kube-proxy's configuration: `KubeProxyConfiguration`, version `kubeproxy.config.k8s.io/v1alpha1`.
//!
//! These types hold every field there is in Kubernetes 1.36, with kube-proxy's defaults. A file ([`file`]) or the command
//! line ([`flags`]) fills one, never both: as in kube-proxy a file wins over the flags of the same fields. [`settings`]
//! says what the fields mean to us.

pub mod duration;
pub mod file;
pub mod flags;
pub mod settings;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use duration::Period;
pub use file::Loaded;
pub use settings::Settings;

/// `apiVersion` of the file.
pub const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// `kind` of the file.
pub const KIND: &str = "KubeProxyConfiguration";

/// kube-proxy's configuration. Fields have Kubernetes' names and meanings; see its reference for each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names and meanings are Kubernetes'")]
pub struct KubeProxyConfiguration {
    pub api_version: String,
    pub kind: String,
    pub feature_gates: BTreeMap<String, bool>,
    pub client_connection: ClientConnection,
    pub logging: Logging,
    pub hostname_override: String,
    pub bind_address: String,
    pub healthz_bind_address: String,
    pub metrics_bind_address: String,
    pub bind_address_hard_fail: bool,
    pub enable_profiling: bool,
    pub show_hidden_metrics_for_version: String,
    pub mode: String,
    pub iptables: Iptables,
    pub ipvs: Ipvs,
    pub nftables: Nftables,
    pub winkernel: Winkernel,
    pub detect_local_mode: String,
    pub detect_local: DetectLocal,
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: String,
    pub node_port_addresses: Vec<String>,
    pub oom_score_adj: i32,
    pub conntrack: Conntrack,
    pub config_sync_period: Period,
    pub port_range: String,
    pub windows_run_as_service: bool,
}

/// `clientConnection`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names and meanings are Kubernetes'")]
pub struct ClientConnection {
    pub kubeconfig: String,
    pub accept_content_types: String,
    pub content_type: String,
    pub qps: f64,
    pub burst: i32,
}

/// `logging`, of which the format and the verbosity mean something to us.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names and meanings are Kubernetes'")]
pub struct Logging {
    pub format: String,
    pub flush_frequency: serde_json::Value,
    pub verbosity: u32,
    pub vmodule: Vec<serde_json::Value>,
    pub options: serde_json::Map<String, serde_json::Value>,
}

/// `iptables`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names and meanings are Kubernetes'")]
pub struct Iptables {
    pub masquerade_bit: u8,
    pub masquerade_all: bool,
    pub localhost_node_ports: bool,
    #[serde(rename = "snatNodeInternalIP")]
    pub snat_node_internal_ip: bool,
    pub sync_period: Period,
    pub min_sync_period: Period,
}

/// `nftables`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names and meanings are Kubernetes'")]
pub struct Nftables {
    pub masquerade_bit: u8,
    pub masquerade_all: bool,
    pub sync_period: Period,
    pub min_sync_period: Period,
}

/// `ipvs`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names and meanings are Kubernetes'")]
pub struct Ipvs {
    pub sync_period: Period,
    pub min_sync_period: Period,
    pub scheduler: String,
    #[serde(rename = "excludeCIDRs")]
    pub exclude_cidrs: Vec<String>,
    #[serde(rename = "strictARP")]
    pub strict_arp: bool,
    pub tcp_timeout: Period,
    pub tcp_fin_timeout: Period,
    pub udp_timeout: Period,
}

/// `winkernel`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names and meanings are Kubernetes'")]
pub struct Winkernel {
    pub network_name: String,
    pub source_vip: String,
    #[serde(rename = "enableDSR")]
    pub enable_dsr: bool,
    pub root_hns_endpoint_name: String,
    pub forward_health_check_vip: bool,
}

/// `detectLocal`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names and meanings are Kubernetes'")]
pub struct DetectLocal {
    pub bridge_interface: String,
    pub interface_name_prefix: String,
}

/// `conntrack`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names and meanings are Kubernetes'")]
pub struct Conntrack {
    pub max_per_core: u32,
    pub min: u32,
    pub tcp_established_timeout: Period,
    pub tcp_close_wait_timeout: Period,
    pub tcp_be_liberal: bool,
    pub udp_timeout: Period,
    pub udp_stream_timeout: Period,
}

// === impl KubeProxyConfiguration ===

impl Default for KubeProxyConfiguration {
    fn default() -> Self {
        Self {
            api_version: API_VERSION.into(),
            kind: KIND.into(),
            feature_gates: BTreeMap::new(),
            client_connection: ClientConnection::default(),
            logging: Logging::default(),
            hostname_override: String::new(),
            bind_address: "0.0.0.0".into(),
            healthz_bind_address: "0.0.0.0:10256".into(),
            metrics_bind_address: "127.0.0.1:10249".into(),
            bind_address_hard_fail: false,
            enable_profiling: false,
            show_hidden_metrics_for_version: String::new(),
            mode: String::new(),
            iptables: Iptables::default(),
            ipvs: Ipvs::default(),
            nftables: Nftables::default(),
            winkernel: Winkernel::default(),
            detect_local_mode: "ClusterCIDR".into(),
            detect_local: DetectLocal::default(),
            cluster_cidr: String::new(),
            node_port_addresses: Vec::new(),
            oom_score_adj: -999,
            conntrack: Conntrack::default(),
            config_sync_period: Period::seconds(15 * 60),
            port_range: String::new(),
            windows_run_as_service: false,
        }
    }
}

impl Default for ClientConnection {
    fn default() -> Self {
        Self {
            kubeconfig: String::new(),
            accept_content_types: String::new(),
            content_type: "application/vnd.kubernetes.protobuf".into(),
            qps: 5.0,
            burst: 10,
        }
    }
}

impl Default for Logging {
    fn default() -> Self {
        Self {
            format: "text".into(),
            flush_frequency: "5s".into(),
            verbosity: 0,
            vmodule: Vec::new(),
            options: serde_json::Map::new(),
        }
    }
}

impl Default for Iptables {
    fn default() -> Self {
        Self {
            masquerade_bit: 14,
            masquerade_all: false,
            localhost_node_ports: true,
            snat_node_internal_ip: false,
            sync_period: Period::seconds(30),
            min_sync_period: Period::seconds(1),
        }
    }
}

impl Default for Nftables {
    fn default() -> Self {
        Self {
            masquerade_bit: 14,
            masquerade_all: false,
            sync_period: Period::seconds(30),
            min_sync_period: Period::seconds(1),
        }
    }
}

impl Default for Ipvs {
    fn default() -> Self {
        Self {
            sync_period: Period::seconds(30),
            min_sync_period: Period::default(),
            scheduler: String::new(),
            exclude_cidrs: Vec::new(),
            strict_arp: false,
            tcp_timeout: Period::default(),
            tcp_fin_timeout: Period::default(),
            udp_timeout: Period::default(),
        }
    }
}

impl Default for Conntrack {
    fn default() -> Self {
        Self {
            max_per_core: 32 * 1024,
            min: 128 * 1024,
            tcp_established_timeout: Period::seconds(24 * 3600),
            tcp_close_wait_timeout: Period::seconds(3600),
            tcp_be_liberal: false,
            udp_timeout: Period::default(),
            udp_stream_timeout: Period::default(),
        }
    }
}

#[cfg(test)]
mod tests;
