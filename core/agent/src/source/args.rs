//! The command line flags that name a source, shared by both daemons and all their subcommands.

use std::path::PathBuf;

use clap::Args;
use ipnet::IpNet;

use super::{Config, Origin, Wants, kube, manifests};

/// Where objects come from. With none of these the daemon runs in a pod and uses its service account.
#[derive(Args, Clone, Debug, Default)]
pub struct SourceArgs {
    /// Folder of Kubernetes manifests (*.yaml, *.yml, *.json), followed live; no cluster is needed
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "master"], help_heading = "Source")]
    pub manifests: Option<PathBuf>,
    /// Kubeconfig file that names the API server and the credentials
    #[arg(long, value_name = "FILE", help_heading = "Source")]
    pub kubeconfig: Option<PathBuf>,
    /// Address of the API server; overrides the kubeconfig's
    #[arg(long, value_name = "URL", help_heading = "Source")]
    pub master: Option<String>,
    /// Ranges that cluster IPs are taken from with --manifests, one of each family; the first one is the default family
    #[arg(long, value_name = "CIDR,CIDR", value_delimiter = ',', value_parser = parse_range, help_heading = "Source",
          default_values_t = manifests::default_service_ranges())]
    pub service_cluster_ip_range: Vec<IpNet>,
    /// Folder for what has to outlive the process: with an API server the cluster's last state, which is used until the API
    /// server answers; with --manifests allocated addresses (default there: the manifest folder, or $XDG_STATE_HOME/portolan
    /// where that is read-only)
    #[arg(long, value_name = "DIR", help_heading = "Source")]
    pub state_dir: Option<PathBuf>,
}

fn parse_range(text: &str) -> Result<IpNet, String> {
    portolan_model::parse::parse_cidr(text)
}

// === impl SourceArgs ===

impl SourceArgs {
    /// What the flags say. `program` becomes part of the user agent that the API server sees.
    pub fn config(&self, wants: Wants, program: &str) -> Config {
        let origin = match &self.manifests {
            Some(dir) => Origin::Manifests(manifests::Options {
                state_dir: self.state_dir.clone(),
                service_ranges: self.service_cluster_ip_range.clone(),
                ..manifests::Options::new(dir)
            }),
            None => Origin::Kube(kube::Options {
                kubeconfig: self.kubeconfig.clone(),
                master: self.master.clone(),
                user_agent: format!("{program}/{}", crate::version::VERSION),
            }),
        };
        Config { origin, wants }
    }
}
