//! portolan-proxy: makes Kubernetes Services work on this node.

use std::process::ExitCode;

use clap::Parser;
use portolan_proxy::cli::{Cli, Command};
use portolan_proxy::command::{cleanup, explain, plan, run, status};
use portolan_proxy::config::flags::go_spelling;

fn main() -> ExitCode {
    let cli = Cli::parse_from(go_spelling(std::env::args_os()));
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = match cli.command.unwrap_or_else(|| Command::Run(Box::new(cli.run))) {
        Command::Run(args) => args.settings().and_then(|settings| {
            portolan_agent::telemetry::init(args.log(cli.log, &settings));
            runtime.block_on(run::run(&args, settings))
        }),
        // The others print their answer and their warnings; a log would only stand between.
        Command::Plan(args) => runtime.block_on(plan::run(&args)),
        Command::Explain(args) => runtime.block_on(explain::run(&args)),
        Command::Status(args) => status::run(&args),
        Command::Cleanup(args) => cleanup::run(&args),
    };
    // A name server that is being asked must not hold up the end.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", portolan_agent::telemetry::one_line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
