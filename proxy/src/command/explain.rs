//! `portolan-proxy explain`: why a connection goes where it goes.

use std::net::IpAddr;

use portolan_plan::Explanation;
#[cfg(target_os = "linux")]
use portolan_plan::SourceKind;

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
    let explanation = portolan_plan::explain(packet, world, look.node.as_ref(), &host, &look.node_plan, &look.options);
    print!("{explanation}");
    live(args, &explanation);
    Ok(())
}

/// Adds what the eBPF maps say, where there are some: the plan is what should be, they are what is.
#[cfg(target_os = "linux")]
fn live(args: &ExplainArgs, explanation: &Explanation) {
    let packet = explanation.packet;
    let from_node = match explanation.source {
        SourceKind::Node => true,
        SourceKind::Pod => false,
        // It has no socket on this node.
        SourceKind::Outside => return,
    };
    match crate::backend::ebpf::live(&args.bpffs, from_node, packet.to, packet.protocol) {
        Ok(Some(text)) => println!("eBPF:     {text}"),
        Ok(None) => {}
        Err(error) => println!("eBPF:     cannot be read in {}: {error}", args.bpffs.display()),
    }
}

#[cfg(not(target_os = "linux"))]
fn live(_: &ExplainArgs, _: &Explanation) {}
