//! kube-proxy's flags, all of them, as another way to fill a [`KubeProxyConfiguration`].
//!
//! A flag that was not given leaves the default. Those that plans depend on are in [`crate::cli::PlanFlags`].

use std::path::PathBuf;

use clap::Args;

use super::{KubeProxyConfiguration, Period};

/// Flags of kube-proxy that the daemon takes beside those that plans depend on.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "kube-proxy (a file given by --config wins over these)")]
pub struct KubeProxyFlags {
    /// Write the configuration with all defaults to this file and exit
    #[arg(long, value_name = "FILE")]
    pub write_config_to: Option<PathBuf>,
    /// Remove what this program programmed on this node and exit, as the word `cleanup` does
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", action = clap::ArgAction::Set)]
    pub cleanup: bool,
    /// Do what needs full privileges (conntrack limits), then exit; afterwards CAP_NET_ADMIN is enough
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", action = clap::ArgAction::Set)]
    pub init_only: bool,
    /// Where /healthz and /livez are served [default: 0.0.0.0:10256]
    #[arg(long, value_name = "ADDR:PORT")]
    pub healthz_bind_address: Option<String>,
    /// Where /metrics, /status, /configz and /proxyMode are served; empty: nowhere [default: 127.0.0.1:10249]
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics_bind_address: Option<String>,
    /// End when one of the two addresses cannot be listened on, instead of trying again
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub bind_address_hard_fail: Option<bool>,
    /// Bit of the packet mark that asks for masquerading [default: 14]
    #[arg(long, alias = "iptables-masquerade-bit", value_name = "BIT", value_parser = clap::value_parser!(u8).range(0..32))]
    pub masquerade_bit: Option<u8>,
    /// oom_score_adj of this process [default: -999]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub oom_score_adj: Option<i32>,
    /// Connections to track for each core; 0 leaves the limit as it is [default: 32768]
    #[arg(long, value_name = "N")]
    pub conntrack_max_per_core: Option<u32>,
    /// Connections to track at least [default: 131072]
    #[arg(long, value_name = "N")]
    pub conntrack_min: Option<u32>,
    /// Idle time of established TCP connections; 0 leaves it as it is [default: 24h]
    #[arg(long, value_name = "TIME")]
    pub conntrack_tcp_timeout_established: Option<Period>,
    /// Idle time of TCP connections in CLOSE_WAIT; 0 leaves it as it is [default: 1h]
    #[arg(long, value_name = "TIME")]
    pub conntrack_tcp_timeout_close_wait: Option<Period>,
    /// Let conntrack accept TCP packets outside of the window
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub conntrack_tcp_be_liberal: Option<bool>,
    /// Idle time of UDP flows without an answer; 0 leaves it as it is
    #[arg(long, value_name = "TIME")]
    pub conntrack_udp_timeout: Option<Period>,
    /// Idle time of UDP flows; 0 leaves it as it is
    #[arg(long, value_name = "TIME")]
    pub conntrack_udp_timeout_stream: Option<Period>,
    /// Serve node ports on 127.0.0.1 and ::1 [default: true]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub iptables_localhost_nodeports: Option<bool>,
    /// Half of the time that a change may wait before /healthz says so [default: 30s]
    #[arg(long, value_name = "TIME")]
    pub iptables_sync_period: Option<Period>,
    /// Flags that kube-proxy has and that mean nothing here
    #[command(flatten)]
    pub without_meaning: WithoutMeaning,
}

/// Accepted, so that a command line of kube-proxy works as it is; named in the log when one is given.
#[derive(Args, Clone, Debug, Default)]
#[allow(missing_docs, reason = "kube-proxy's flags, none of which does anything here")]
pub struct WithoutMeaning {
    #[arg(long, hide_short_help = true)]
    pub kube_api_content_type: Option<String>,
    #[arg(long, hide_short_help = true)]
    pub kube_api_burst: Option<String>,
    #[arg(long, hide_short_help = true)]
    pub kube_api_qps: Option<String>,
    #[arg(long, hide_short_help = true)]
    pub feature_gates: Option<String>,
    #[arg(long, hide_short_help = true)]
    pub show_hidden_metrics_for_version: Option<String>,
    #[arg(long, hide_short_help = true)]
    pub iptables_min_sync_period: Option<String>,
    #[arg(long, hide_short_help = true)]
    pub ipvs_sync_period: Option<String>,
    #[arg(long, hide_short_help = true)]
    pub ipvs_min_sync_period: Option<String>,
    #[arg(long, hide_short_help = true)]
    pub ipvs_scheduler: Option<String>,
    #[arg(long, hide_short_help = true)]
    pub ipvs_exclude_cidrs: Option<String>,
    #[arg(long, hide_short_help = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub ipvs_strict_arp: Option<String>,
    #[arg(long, hide_short_help = true)]
    pub ipvs_tcp_timeout: Option<String>,
    #[arg(long, hide_short_help = true)]
    pub ipvs_tcpfin_timeout: Option<String>,
    #[arg(long, hide_short_help = true)]
    pub ipvs_udp_timeout: Option<String>,
    #[arg(long, hide_short_help = true)]
    pub config_sync_period: Option<String>,
    #[arg(long, hide_short_help = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub profiling: Option<String>,
    #[arg(long, hide_short_help = true)]
    pub healthz_port: Option<String>,
    #[arg(long, hide_short_help = true)]
    pub metrics_port: Option<String>,
    #[arg(long, hide_short_help = true)]
    pub proxy_port_range: Option<String>,
    #[arg(long, hide_short_help = true)]
    pub vmodule: Option<String>,
    #[arg(long, hide_short_help = true)]
    pub log_flush_frequency: Option<String>,
    #[arg(long, hide_short_help = true)]
    pub logging_format: Option<String>,
    #[arg(long, hide_short_help = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub logtostderr: Option<String>,
    #[arg(long, hide_short_help = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub alsologtostderr: Option<String>,
    #[arg(long, hide_short_help = true)]
    pub boot_id_file: Option<String>,
    #[arg(long, hide_short_help = true)]
    pub machine_id_file: Option<String>,
}

// === impl KubeProxyFlags ===

impl KubeProxyFlags {
    /// Puts the flags that were given into a configuration.
    pub fn fill(&self, config: &mut KubeProxyConfiguration) {
        fn put<T: Clone>(field: &mut T, flag: &Option<T>) {
            if let Some(value) = flag {
                field.clone_from(value);
            }
        }
        put(&mut config.healthz_bind_address, &self.healthz_bind_address);
        put(&mut config.metrics_bind_address, &self.metrics_bind_address);
        put(&mut config.bind_address_hard_fail, &self.bind_address_hard_fail);
        put(&mut config.iptables.masquerade_bit, &self.masquerade_bit);
        put(&mut config.nftables.masquerade_bit, &self.masquerade_bit);
        put(
            &mut config.iptables.localhost_node_ports,
            &self.iptables_localhost_nodeports,
        );
        put(&mut config.iptables.sync_period, &self.iptables_sync_period);
        put(&mut config.nftables.sync_period, &self.iptables_sync_period);
        put(&mut config.oom_score_adj, &self.oom_score_adj);
        let conntrack = &mut config.conntrack;
        put(&mut conntrack.max_per_core, &self.conntrack_max_per_core);
        put(&mut conntrack.min, &self.conntrack_min);
        put(
            &mut conntrack.tcp_established_timeout,
            &self.conntrack_tcp_timeout_established,
        );
        put(
            &mut conntrack.tcp_close_wait_timeout,
            &self.conntrack_tcp_timeout_close_wait,
        );
        put(&mut conntrack.tcp_be_liberal, &self.conntrack_tcp_be_liberal);
        put(&mut conntrack.udp_timeout, &self.conntrack_udp_timeout);
        put(&mut conntrack.udp_stream_timeout, &self.conntrack_udp_timeout_stream);
    }
}

impl WithoutMeaning {
    /// The flags that were given.
    pub fn given(&self) -> Vec<&'static str> {
        let flags = [
            ("--kube-api-content-type", &self.kube_api_content_type),
            ("--kube-api-burst", &self.kube_api_burst),
            ("--kube-api-qps", &self.kube_api_qps),
            ("--feature-gates", &self.feature_gates),
            (
                "--show-hidden-metrics-for-version",
                &self.show_hidden_metrics_for_version,
            ),
            ("--iptables-min-sync-period", &self.iptables_min_sync_period),
            ("--ipvs-sync-period", &self.ipvs_sync_period),
            ("--ipvs-min-sync-period", &self.ipvs_min_sync_period),
            ("--ipvs-scheduler", &self.ipvs_scheduler),
            ("--ipvs-exclude-cidrs", &self.ipvs_exclude_cidrs),
            ("--ipvs-strict-arp", &self.ipvs_strict_arp),
            ("--ipvs-tcp-timeout", &self.ipvs_tcp_timeout),
            ("--ipvs-tcpfin-timeout", &self.ipvs_tcpfin_timeout),
            ("--ipvs-udp-timeout", &self.ipvs_udp_timeout),
            ("--config-sync-period", &self.config_sync_period),
            ("--profiling", &self.profiling),
            ("--healthz-port", &self.healthz_port),
            ("--metrics-port", &self.metrics_port),
            ("--proxy-port-range", &self.proxy_port_range),
            ("--vmodule", &self.vmodule),
            ("--log-flush-frequency", &self.log_flush_frequency),
            ("--logging-format", &self.logging_format),
            ("--logtostderr", &self.logtostderr),
            ("--alsologtostderr", &self.alsologtostderr),
            ("--boot-id-file", &self.boot_id_file),
            ("--machine-id-file", &self.machine_id_file),
        ];
        flags
            .into_iter()
            .filter(|(_, value)| value.is_some())
            .map(|(flag, _)| flag)
            .collect()
    }
}

/// Go's flags know `-v=2`, where ours count (`-v`, `-vv`): turned into `--v=2`, which means the same to both.
pub fn go_spelling(args: impl Iterator<Item = std::ffi::OsString>) -> Vec<std::ffi::OsString> {
    args.map(|arg| match arg.to_str().and_then(|text| text.strip_prefix("-v=")) {
        Some(level) => format!("--v={level}").into(),
        None => arg,
    })
    .collect()
}
