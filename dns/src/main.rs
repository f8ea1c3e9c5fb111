//! portolan-dns: the cluster's DNS server.

use std::process::ExitCode;

use clap::Parser;
use portolan_dns::config::{CleanupArgs, Cli, Command};
use portolan_dns::{ask, nodelocal, run};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = match cli.command.unwrap_or_else(|| Command::Run(Box::new(cli.run))) {
        Command::Run(args) => {
            portolan_agent::telemetry::init(cli.log);
            runtime.block_on(run::run(&args))
        }
        // It prints its answer and its warnings; a log would only stand between.
        // So does this one.
        Command::Check(args) => run::reload::check(&args),
        Command::Cleanup(args) => cleanup(&args),
        Command::Answer(args) => runtime.block_on(ask::run(&args)),
    };
    // Threads that still wait for something must not keep the process alive.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", portolan_agent::telemetry::one_line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn cleanup(args: &CleanupArgs) -> anyhow::Result<()> {
    let gone = nodelocal::cleanup(&args.local_ip)?;
    if gone.is_empty() {
        println!("nothing was left of a node-local server");
    }
    for ip in gone {
        println!("removed {ip}");
    }
    Ok(())
}
