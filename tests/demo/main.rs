//! The demo: a small application on a small cluster, with Portolan as its service network. `cargo xtask demo` starts it.
//!
//! On Linux as root the cluster is a lab of three nodes; elsewhere the same application runs on the loopback address with
//! the userspace backend. The manifests are read from a folder that the user can edit. The demo starts pods and asks; who
//! may answer follows from the pods' labels and readiness, and everything between is the daemons' work.

mod app;
mod checks;
#[cfg(target_os = "linux")]
mod lab;
mod loopback;
mod manifests;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

/// The demo's application and the clusters that it runs on.
#[derive(Parser)]
#[command(name = "portolan-demo", version)]
enum Command {
    /// On three nodes of network namespaces (Linux, as root)
    Lab(Options),
    /// On this machine's loopback address, with the userspace backend
    Loopback(Options),
    /// Take down labs that `--keep` left up
    Down,
    /// Ask a URL a number of times and count who answered
    Get(app::GetOptions),
    /// Resolve a name as every program does
    Lookup {
        /// The name.
        name: String,
    },
}

/// How the demo runs.
#[derive(clap::Args)]
pub struct Options {
    /// The folder of manifests
    #[arg(long)]
    manifests: PathBuf,
    /// Leave everything up and say how to look around
    #[arg(long)]
    keep: bool,
    /// Follow a real API server instead of the folder; kubectl applies the manifests
    #[arg(long)]
    api_server: bool,
    /// The proxy's backend: auto, nft, userspace; or kube-proxy for the real kube-proxy and CoreDNS (with --api-server)
    #[arg(long, default_value = "auto")]
    backend: String,
}

fn main() -> ExitCode {
    match run(Command::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        #[cfg(target_os = "linux")]
        Command::Lab(options) => return lab::run(&options),
        #[cfg(target_os = "linux")]
        Command::Down => lab::down(),
        #[cfg(not(target_os = "linux"))]
        Command::Lab(_) | Command::Down => anyhow::bail!("the lab needs Linux; `loopback` runs everywhere"),
        Command::Loopback(options) => return loopback::run(&options),
        Command::Get(options) => println!("{}", serde_json::to_string(&app::get(&options))?),
        Command::Lookup { name } => println!("{}", serde_json::to_string(&app::lookup(&name)?)?),
    }
    Ok(ExitCode::SUCCESS)
}
