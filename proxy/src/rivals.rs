//! Other programs on this node that translate Services: found at start, reported with the way out.
//!
//! Two of them do not add up: whoever translates first decides, with its own idea of topology, affinity and policy, and the
//! other one's counters, health and explanations are wrong. Rules stay when their program has ended, so that a node that
//! was migrated in a hurry has them, too. Nothing is touched: this only looks.

mod kernel;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::backend::nft;

/// Somebody else who translates Services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rival {
    /// Who.
    pub name: &'static str,
    /// By what it was noticed.
    pub seen: String,
    /// How to be rid of it.
    pub way_out: &'static str,
}

impl fmt::Display for Rival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} translates Services on this node, too ({}): {}",
            self.name, self.seen, self.way_out
        )
    }
}

/// What is looked at. What cannot be read is taken to be absent: this is advice, not a condition.
#[derive(Clone, Debug, Default)]
pub(crate) struct Evidence {
    /// Tables and chains of nf_tables, as `FAMILY TABLE CHAIN`.
    pub(crate) nft_chains: Vec<String>,
    /// Those of the older interface that hold a chain of kube-proxy: `iptables` or `ip6tables`.
    pub(crate) legacy: Vec<&'static str>,
    /// Names of loaded BPF programs, cut as the kernel does.
    pub(crate) programs: Vec<String>,
    /// Names of network interfaces.
    pub(crate) interfaces: Vec<String>,
    /// The text of `/proc/net/ip_vs`.
    pub(crate) ip_vs: String,
}

/// Looks at this machine and this network namespace.
pub fn find() -> Vec<Rival> {
    Evidence::gather(Path::new("/")).rivals()
}

// === impl Evidence ===

impl Evidence {
    fn gather(root: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
        let interfaces = fs::read_dir(root.join("sys/class/net")).into_iter().flatten().flatten();
        let interfaces = interfaces.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let legacy = [
            (false, "ip_tables_names", "iptables"),
            (true, "ip6_tables_names", "ip6tables"),
        ];
        let legacy = legacy.into_iter().filter(|(v6, names, _)| {
            // Asking for a table that is not there would have the kernel load it.
            let names = read(&PathBuf::from("proc/self/net").join(names).to_string_lossy());
            names.lines().any(|name| name == "nat") && kernel::legacy_nat_has(*v6, b"KUBE-SERVICES\0").unwrap_or(false)
        });
        Self {
            nft_chains: nft::all_chains().unwrap_or_default(),
            legacy: legacy.map(|(_, _, name)| name).collect(),
            programs: kernel::bpf_program_names().unwrap_or_default(),
            interfaces: interfaces.collect(),
            ip_vs: read("proc/self/net/ip_vs"),
        }
    }

    /// Whom it points to.
    pub(crate) fn rivals(&self) -> Vec<Rival> {
        let mut rivals = Vec::new();
        let mut add = |name, seen: String, way_out| rivals.push(Rival { name, seen, way_out });
        let chains = |of: fn(&str, &str) -> bool| {
            let mut found: Vec<&str> = Vec::new();
            for chain in &self.nft_chains {
                if let Some((table, name)) = chain.rsplit_once(' ')
                    && of(table.split_once(' ').map_or("", |(_, table)| table), name)
                    && !found.contains(&table)
                {
                    found.push(table);
                }
            }
            found.join(", ")
        };
        let kube_proxy = "stop kube-proxy on this node, then run `portolan-proxy cleanup --kube-proxy`";
        let legacy = "stop kube-proxy on this node, then run `kube-proxy --cleanup`";
        let tables = chains(|table, _| table == "kube-proxy");
        if !tables.is_empty() {
            add(
                "kube-proxy in nftables mode",
                format!("nftables tables {tables}"),
                kube_proxy,
            );
        }
        let tables = chains(|_, chain| chain == "KUBE-SERVICES");
        if !tables.is_empty() {
            let seen = format!("chain KUBE-SERVICES in nftables tables {tables}");
            add("kube-proxy in iptables mode", seen, kube_proxy);
        }
        if !self.legacy.is_empty() {
            let seen = format!("chain KUBE-SERVICES in {}", self.legacy.join(" and "));
            add("kube-proxy in iptables mode", seen, legacy);
        }
        let servers = self.ip_vs.lines();
        let servers = servers.filter(|line| ["TCP", "UDP", "SCTP"].iter().any(|word| line.starts_with(word)));
        let servers = servers.count();
        let bridge = self.interfaces.iter().any(|name| name == "kube-ipvs0");
        if servers > 0 || bridge {
            let what = if bridge { "interface kube-ipvs0, " } else { "" };
            let seen = format!("{what}{servers} IPVS virtual servers");
            let way_out = "stop kube-proxy (or kube-router) on this node, then run `kube-proxy --cleanup`";
            add("IPVS", seen, way_out);
        }
        let program = |prefixes: &[&str]| {
            let mut names = self.programs.iter();
            names
                .find(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)))
                .cloned()
        };
        let interface = |wanted: &str| self.interfaces.iter().find(|name| *name == wanted);
        // Also without kube-proxy replacement Cilium translates what its pods send to Services.
        let way_out = "let Cilium leave Services to us, or stop portolan-proxy on this node";
        if let Some(name) = program(&["cil_sock4", "cil_sock6", "cil_from_", "cil_to_"]) {
            add("Cilium", format!("BPF program {name}"), way_out);
        } else if let Some(name) = interface("cilium_host") {
            add("Cilium", format!("interface {name}"), way_out);
        }
        // Calico's other data planes filter, but do not translate Services.
        let way_out = "set bpfEnabled to false in Calico's FelixConfiguration, or stop portolan-proxy on this node";
        if let Some(name) = program(&["calico_connect", "calico_sendmsg", "cali_ctlb"]) {
            add("Calico's eBPF data plane", format!("BPF program {name}"), way_out);
        } else if let Some(name) = interface("bpfin.cali") {
            add("Calico's eBPF data plane", format!("interface {name}"), way_out);
        }
        rivals
    }
}
