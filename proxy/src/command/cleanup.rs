//! `portolan-proxy cleanup`: removes what this program programmed, and nothing else.

use crate::cli::CleanupArgs;

/// Removes our programs and maps, then our tables.
///
/// # Errors
/// When the kernel refuses, which without privilege it does.
#[cfg(target_os = "linux")]
pub fn run(args: &CleanupArgs) -> anyhow::Result<()> {
    use anyhow::Context;

    use crate::backend::ebpf;
    use crate::backend::nft::NftOptions;

    let programs = ebpf::cleanup(&args.bpffs)
        .with_context(|| format!("cannot remove what is pinned in {}", args.bpffs.display()))?;
    println!("removed: {programs} eBPF programs pinned in {}", args.bpffs.display());
    crate::backend::nft::cleanup(&NftOptions::default())
        .context("cannot remove the nftables tables `portolan` (this needs CAP_NET_ADMIN)")?;
    println!("removed: tables `ip portolan` and `ip6 portolan`");
    Ok(())
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
