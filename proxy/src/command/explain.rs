//! `portolan-proxy explain`: why a connection goes where it goes.

use std::net::IpAddr;

use crate::cli::ExplainArgs;
use crate::command::look;

/// Prints the explanation.
///
/// # Errors
/// When the source cannot be read.
pub async fn run(args: &ExplainArgs) -> anyhow::Result<()> {
    let look = look(&args.plan).await?;
    let host: Vec<IpAddr> = look.host.iter().map(|address| address.0).collect();
    let packet = args.packet();
    let world = &look.snapshot.world;
    print!(
        "{}",
        portolan_plan::explain(packet, world, look.node.as_ref(), &host, &look.node_plan, &look.options)
    );
    Ok(())
}
