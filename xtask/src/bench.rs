//! `cargo xtask bench`: what the proxy costs beside the real kube-proxy, on one API server in one run.
//!
//! This prepares (tools, the control plane and kube-proxy, release builds) and then becomes `portolan-bench`, which raises
//! a lab, measures and prints tables; `tests/bench/main.rs` says what is measured and how it is kept fair. With `dns` it
//! becomes `portolan-bench-dns`, see `tests/bench-dns/main.rs`. Every argument is that program's:
//!
//! | command                            | what it measures                                                     | time     |
//! |------------------------------------|----------------------------------------------------------------------|----------|
//! | `cargo xtask bench`                | cold load and one change at 1,000 and 10,000 Services x 5 endpoints  | minutes  |
//! | `cargo xtask bench path`           | connect time and connections a second at the same sizes              | minutes  |
//! | `cargo xtask bench --quick`        | the same as the first, small, in a debug build: does it work at all? | 20 s     |
//! | `cargo xtask bench dns`            | portolan-dns beside Knot DNS, Unbound and CoreDNS: rate, CPU, memory  | minutes  |
//! | `... --services 1000,10000,30000`  | other sizes; kube-proxy's nftables mode needs many minutes for 30,000|          |
//!
//! Figures count only when the machine does nothing else.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Result, bail};

use crate::command::{cargo, replace, run as run_command, target_dir};
use crate::doctor::{self, Purpose, Verbosity};
use crate::kube_assets;

/// Arguments of `cargo xtask bench`: those of portolan-bench.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// path, dns, --services N,N, --endpoints N, --repeats N, --changes N, --subjects NAME,NAME, --quick, --json FILE; --help tells more
    #[arg(value_name = "OPTIONS", trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<OsString>,
}

/// Runs the bench; on Unix it does not come back.
pub fn run(args: &Args) -> Result<()> {
    let has = |names: &[&str]| {
        args.options
            .iter()
            .any(|option| names.iter().any(|name| option == name))
    };
    let help = has(&["--help", "-h"]);
    let dns = args.options.first().is_some_and(|option| option == "dns");
    let purpose = if dns { Purpose::BenchDns } else { Purpose::Bench };
    if !help {
        if !cfg!(target_os = "linux") || !doctor::is_root() {
            bail!("the bench needs the lab: Linux, as root");
        }
        doctor::examine(&[Purpose::Build, purpose], true, Verbosity::Brief)?;
        kube_assets::run()?;
    }
    let (profile, folder): (&[&str], &str) = if help || has(&["--quick"]) {
        (&[], "debug")
    } else {
        (&["--release"], "release")
    };
    let (daemon, program) = match dns {
        true => ("portolan-dns", "portolan-bench-dns"),
        false => ("portolan-proxy", "portolan-bench"),
    };
    println!("bench: building {daemon} and the bench ({folder}; the first release build takes minutes)");
    // One after the other: built together, the daemon could get features that only the lab asks for.
    let build = |words: &[&str]| run_command(cargo().arg("build").args(profile).args(words));
    build(&["--package", daemon])?;
    build(&["--package", "portolan-lab", "--bin", program, "--bin", "portolan-probe"])?;
    let built = target_dir().join(folder);
    let mut bench = Command::new(built.join(format!("{program}{}", std::env::consts::EXE_SUFFIX)));
    bench.args(args.options.iter().skip(usize::from(dns)));
    for (variable, program) in [
        ("PORTOLAN_PROXY", "portolan-proxy"),
        ("PORTOLAN_DNS", "portolan-dns"),
        ("PORTOLAN_PROBE", "portolan-probe"),
    ] {
        bench.env(variable, built.join(program));
    }
    replace(&mut bench)
}
