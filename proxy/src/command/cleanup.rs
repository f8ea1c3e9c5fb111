//! `portolan-proxy cleanup`: removes what this program programmed, or what kube-proxy left behind; nothing else.

use crate::cli::CleanupArgs;

/// Removes our programs and maps and our tables, or kube-proxy's rules.
///
/// # Errors
/// When the kernel refuses, which without privilege it does; for kube-proxy's rules also while ours are not there, because
/// the node would be without Services.
#[cfg(target_os = "linux")]
pub fn run(args: &CleanupArgs) -> anyhow::Result<()> {
    use anyhow::Context;

    use crate::backend::ebpf;
    use crate::backend::nft::{self, NftOptions};

    let options = NftOptions::default();
    if !args.kube_proxy {
        let programs = ebpf::cleanup(&args.bpffs)
            .with_context(|| format!("cannot remove what is pinned in {}", args.bpffs.display()))?;
        println!("removed: {programs} eBPF programs pinned in {}", args.bpffs.display());
        nft::cleanup(&options).context("cannot remove the nftables tables `portolan` (this needs CAP_NET_ADMIN)")?;
        println!("removed: tables `ip portolan` and `ip6 portolan`");
        return Ok(());
    }
    let ours =
        nft::is_programmed(&options.table).context("cannot see what is programmed (this needs CAP_NET_ADMIN)")?;
    anyhow::ensure!(
        ours || args.force,
        "portolan-proxy has programmed nothing here: without kube-proxy's rules no Service would work on this node. Start \
         portolan-proxy and wait until `portolan-proxy status` says that it is synced, or say --force"
    );
    if let Some(process) = running_kube_proxy() {
        eprintln!("warning: kube-proxy runs here (process {process}) and will program its rules again; stop it first");
    }
    let removed = nft::remove_kube_proxy().context("cannot remove kube-proxy's rules (this needs CAP_NET_ADMIN)")?;
    if removed.is_empty() {
        println!("nothing of kube-proxy is left in nf_tables");
    }
    removed.iter().for_each(|what| println!("removed: {what}"));
    if legacy_iptables() {
        println!("this node also uses the older iptables interface; if kube-proxy did: kube-proxy --cleanup");
    }
    Ok(())
}

/// A kube-proxy in this network namespace.
#[cfg(target_os = "linux")]
fn running_kube_proxy() -> Option<u32> {
    let here = std::fs::read_link("/proc/self/ns/net").ok()?;
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let mut numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers.find(|process| {
        let comm = std::fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
        let namespace = std::fs::read_link(format!("/proc/{process}/ns/net"));
        comm.trim() == "kube-proxy" && namespace.is_ok_and(|namespace| namespace == here)
    })
}

/// Whether the kernel holds tables of the interface before nf_tables, which we do not speak.
#[cfg(target_os = "linux")]
fn legacy_iptables() -> bool {
    let names = ["/proc/self/net/ip_tables_names", "/proc/self/net/ip6_tables_names"];
    names
        .iter()
        .any(|file| std::fs::read_to_string(file).is_ok_and(|names| names.lines().any(|name| name == "nat")))
}

/// Nothing outlives the process on this system.
///
/// # Errors
/// Never.
#[cfg(not(target_os = "linux"))]
pub fn run(_: &CleanupArgs) -> anyhow::Result<()> {
    println!("nothing to remove: the userspace backend leaves nothing behind");
    Ok(())
}
