//! `portolan-proxy plan`: what this node would do.

use std::collections::BTreeSet;
use std::io::Write;

use portolan_plan::plan_service;

use crate::cli::PlanArgs;
use crate::command::look;

/// Prints the node's plan and the Services' plans.
///
/// # Errors
/// When the source cannot be read or a named Service is not there.
pub async fn run(args: &PlanArgs) -> anyhow::Result<()> {
    let look = look(&args.plan).await?;
    let mut wanted: BTreeSet<&str> = args.services.iter().map(String::as_str).collect();
    let mut out = std::io::stdout().lock();
    if wanted.is_empty() {
        writeln!(out, "{}", look.node_plan)?;
    }
    for view in look.snapshot.world.services() {
        let name = view.service.name.to_string();
        if args.services.is_empty() || wanted.remove(&*name) {
            write!(
                out,
                "{}",
                plan_service(view, look.node.as_ref(), &look.node_plan, &look.options)
            )?;
        }
    }
    let missing: Vec<&str> = wanted.into_iter().collect();
    anyhow::ensure!(
        missing.is_empty(),
        "no such Service: {} (names are NAMESPACE/NAME)",
        missing.join(", ")
    );
    Ok(())
}
