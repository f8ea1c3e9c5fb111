//! `cargo xtask demo`: from a fresh machine to answered requests, with one command.
//!
//! This prepares (tools, programs, a folder of manifests) and then becomes `portolan-demo`, which raises the cluster, asks
//! and takes everything down. Being the same process, it is the one that Ctrl-C reaches.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{cargo, replace, run as run_command, target_dir, workspace};
use crate::doctor::{self, Purpose, Verbosity};
use crate::kube_assets;

/// Arguments of `cargo xtask demo`.
#[derive(clap::Args)]
pub struct Args {
    /// Leave everything up and say how to look around
    #[arg(long)]
    keep: bool,
    /// Take down what `--keep` left up
    #[arg(long, exclusive = true)]
    down: bool,
    /// Follow a real API server; kubectl applies the manifests
    #[arg(long, conflicts_with = "loopback")]
    api_server: bool,
    /// Run on the loopback address with the userspace backend, also where the lab could run
    #[arg(long)]
    loopback: bool,
    /// The proxy's backend in the lab: auto, nft, userspace; or kube-proxy for the real kube-proxy and CoreDNS
    #[arg(long, default_value = "auto")]
    backend: String,
    /// Use this folder instead of a fresh copy of deploy/demo
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
}

/// Runs the demo; on Unix it does not come back.
pub fn run(args: &Args) -> Result<()> {
    let lab = !args.loopback && cfg!(target_os = "linux") && doctor::is_root();
    if args.api_server && !lab {
        bail!("--api-server needs the lab: Linux, as root");
    }
    let mut purposes = vec![Purpose::Build];
    if lab {
        purposes.push(Purpose::Demo);
    } else if !args.loopback {
        println!("demo: this is not Linux as root, so the application runs in userspace on the loopback address");
    }
    if args.api_server {
        purposes.push(Purpose::ApiServer);
    }
    doctor::examine(&purposes, lab, Verbosity::Brief)?;
    println!("demo: building portolan-proxy, portolan-dns and the demo");
    run_command(cargo().args(["build", "--package", "portolan-proxy", "--package", "portolan-dns"]))?;
    // The lab's pods are portolan-probe, loopback's are the demo itself.
    let programs: &[&str] = if lab {
        &["--bin", "portolan-probe", "--bin", "portolan-demo"]
    } else {
        &["--bin", "portolan-demo"]
    };
    run_command(cargo().args(["build", "--package", "portolan-lab"]).args(programs))?;
    if args.api_server {
        kube_assets::run()?;
    }
    if args.down {
        return become_demo(vec!["down".into()]);
    }
    let folder = match &args.manifests {
        Some(folder) => folder.clone(),
        None => fresh_copy(&workspace().join("deploy/demo"), &target_dir().join("demo"))?,
    };
    let mut words: Vec<OsString> = vec![if lab { "lab" } else { "loopback" }.into()];
    words.extend([
        "--backend".into(),
        args.backend.clone().into(),
        "--manifests".into(),
        folder.into(),
    ]);
    words.extend(args.keep.then(|| "--keep".into()));
    words.extend(args.api_server.then(|| "--api-server".into()));
    become_demo(words)
}

fn become_demo(words: Vec<OsString>) -> Result<()> {
    let name = format!("portolan-demo{}", std::env::consts::EXE_SUFFIX);
    let mut command = Command::new(target_dir().join("debug").join(name));
    command.args(words);
    replace(&mut command)
}

/// Copies the manifests to where they can be edited without changing the checkout.
pub fn fresh_copy(from: &Path, to: &Path) -> Result<PathBuf> {
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| format!("cannot empty {}", to.display()))?;
    }
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let file = entry.with_context(|| format!("cannot read {}", from.display()))?.path();
        if let Some(name) = file.file_name() {
            fs::copy(&file, to.join(name)).with_context(|| format!("cannot copy {}", file.display()))?;
        }
    }
    Ok(to.to_path_buf())
}
