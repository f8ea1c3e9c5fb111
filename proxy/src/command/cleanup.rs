//! `portolan-proxy cleanup`: removes what this program programmed, and nothing else.

/// Removes our tables.
///
/// # Errors
/// When the kernel refuses, which without privilege it does.
#[cfg(target_os = "linux")]
pub fn run() -> anyhow::Result<()> {
    use anyhow::Context;

    use crate::backend::nft::NftOptions;

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
pub fn run() -> anyhow::Result<()> {
    println!("nothing to remove: the userspace backend leaves nothing behind");
    Ok(())
}
