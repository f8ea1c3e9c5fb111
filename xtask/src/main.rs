//! The project's own commands, `cargo xtask COMMAND`: what a developer, a curious user and CI call.
//!
//! Each command is a module of its own. They start programs (cargo, apt-get, go, the daemons) and read what those say;
//! none of them holds a rule of Kubernetes or knows what a packet looks like. A command that fails says what to do next.

mod bench;
mod command;
mod cross;
mod demo;
mod doctor;
mod ebpf;
mod image;
mod kube_assets;
mod suite;
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's own commands.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Raise a small cluster with an application on it, ask it, and take everything down
    Demo(demo::Args),
    /// Measure the proxy beside the real kube-proxy: cold load, single changes, memory, connections
    Bench(bench::Args),
    /// Check that this machine has everything the project needs, and install what it lacks
    Doctor(doctor::Args),
    /// Build the eBPF programs, which the next build of portolan-proxy embeds
    Ebpf,
    /// Write an OCI image of each daemon, from a release build, without a container builder
    Image(image::Args),
    /// Provide etcd, the Kubernetes control plane, kubectl, kube-proxy and CoreDNS for the tests
    KubeAssets,
    /// Run every check and every test: what CI runs
    #[command(visible_alias = "ci")]
    Test(suite::Args),
    /// Run the demo on loopback under Wine, and type-check the same programs for macOS
    Cross(cross::Args),
    /// Check the rules of the code base that no compiler checks
    Tidy,
}

fn main() -> ExitCode {
    end_quietly_with_the_reader();
    let done = match Cli::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Ebpf => ebpf::run().map(|_| ()),
        Command::Image(args) => image::run(&args),
        Command::KubeAssets => kube_assets::run().map(|_| ()),
        Command::Test(args) => suite::run(&args),
        Command::Cross(args) => cross::main(&args).and_then(suite::Tally::into_result),
        Command::Tidy => tidy::run().and_then(suite::Tally::into_result),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// `cargo xtask doctor | head` ends like any other program, without a panic about its closed output.
#[cfg(unix)]
fn end_quietly_with_the_reader() {
    // SAFETY: SIG_DFL is a valid disposition, and no other thread runs yet.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

#[cfg(not(unix))]
fn end_quietly_with_the_reader() {}
