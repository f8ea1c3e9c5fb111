//! Where the programs are that the lab starts: ours beside the running one, the peers in the cache of kube assets.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// The directory of one set of peers below the user's cache; its name is their versions.
pub const KUBE_ASSETS: &str = "portolan/kube-assets/k8s-v1.36.3_etcd-v3.6.16_coredns-v1.14.7/bin";

/// One of our programs: the file that the environment variable names, or the file of that name beside the running program
/// or in the directory above it (tests run in `target/debug/deps`).
///
/// # Errors
/// When there is no such file.
pub fn find(variable: &str, name: &str) -> Result<PathBuf> {
    if let Some(file) = std::env::var_os(variable) {
        let file = PathBuf::from(file);
        if file.is_file() {
            return Ok(file);
        }
        bail!("{variable} names {}, which is no file", file.display());
    }
    let exe = std::env::current_exe()?;
    let near = exe
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file());
    near.map_or_else(
        || bail!("{name} was not found near {} and {variable} is not set", exe.display()),
        Ok,
    )
}

/// One of the peers (`kube-apiserver`, `kube-proxy`, ...): from `KUBEBUILDER_ASSETS`, the cache of kube assets, or PATH.
///
/// # Errors
/// When it is in none of them.
pub fn peer(name: &str) -> Result<PathBuf> {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| {
        let home = std::env::var_os("HOME")?;
        Some(Path::new(&home).join(".cache"))
    });
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = assets
        .into_iter()
        .chain(cache.map(|dir| dir.join(KUBE_ASSETS)))
        .chain(std::env::split_paths(&path));
    match places.map(|dir| dir.join(name)).find(|file| file.is_file()) {
        Some(file) => Ok(file),
        None => bail!("{name} was not found; `cargo xtask kube-assets` provides it"),
    }
}
