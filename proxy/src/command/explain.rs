//! `portolan-proxy explain`: why a connection goes where it goes.

use std::net::IpAddr;

use anyhow::Context;
use portolan_plan::Explanation;

use crate::cli::{ExplainArgs, Output};
use crate::command::{ask, look};
use crate::explain::Answer;

/// Prints the explanation.
///
/// # Errors
/// When the source cannot be read, no daemon answers, or the kernel holds something else (after printing).
pub async fn run(args: &ExplainArgs) -> anyhow::Result<()> {
    let answer = match args.daemon {
        Some(daemon) => {
            let (to, protocol) = args.to;
            let path = format!("/explain?from={}&to={to}/{}", args.from, protocol.lower());
            serde_json::from_str(&ask(daemon, &path)?).context("the answer is not an explanation")?
        }
        None => from_source(args).await?,
    };
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&answer)?),
        Output::Text => print!("{}", answer.text),
    }
    anyhow::ensure!(!answer.differs(), "the kernel does not hold what was planned");
    Ok(())
}

async fn from_source(args: &ExplainArgs) -> anyhow::Result<Answer> {
    let look = look(&args.plan).await?;
    let host: Vec<IpAddr> = look.host.iter().map(|address| address.0).collect();
    let world = &look.snapshot.world;
    let explanation = portolan_plan::explain(
        args.packet(),
        world,
        look.node.as_ref(),
        &host,
        &look.node_plan,
        &look.options,
    );
    let kernel = if args.live {
        let bit = args.plan.settings()?.masquerade_bit;
        Some(kernel::inspect(&explanation, &look.node_plan, bit)?)
    } else {
        None
    };
    let mut answer = Answer::new(&explanation, kernel);
    if let Some(line) = ebpf(args, &explanation) {
        answer.text.push_str(&format!("eBPF:     {line}\n"));
        answer.notes.push(format!("eBPF: {line}"));
    }
    Ok(answer)
}

/// What the eBPF maps say, where there are some: the plan is what should be, they are what is.
#[cfg(target_os = "linux")]
fn ebpf(args: &ExplainArgs, explanation: &Explanation) -> Option<String> {
    use portolan_plan::SourceKind;

    let packet = explanation.packet;
    let from_node = match explanation.source {
        SourceKind::Node => true,
        SourceKind::Pod => false,
        // They have no socket on this node.
        SourceKind::PodElsewhere | SourceKind::Outside => return None,
    };
    match crate::backend::ebpf::live(&args.bpffs, from_node, packet.to, packet.protocol) {
        Ok(text) => text,
        Err(error) => Some(format!("cannot be read in {}: {error}", args.bpffs.display())),
    }
}

#[cfg(not(target_os = "linux"))]
fn ebpf(_: &ExplainArgs, _: &Explanation) -> Option<String> {
    None
}

#[cfg(target_os = "linux")]
mod kernel {
    use anyhow::Context;
    use portolan_plan::{Explanation, NodePlan};

    use crate::backend::Inspection;
    use crate::backend::nft::NftOptions;
    use crate::backend::nft::inspect;

    pub fn inspect(explanation: &Explanation, node: &NodePlan, masquerade_bit: u8) -> anyhow::Result<Inspection> {
        let options = NftOptions {
            masquerade_bit,
            ..NftOptions::default()
        };
        inspect::inspect(&explanation.into(), node, &options)
            .context("cannot ask the kernel (this needs CAP_NET_ADMIN and nf_tables)")
    }
}

#[cfg(not(target_os = "linux"))]
mod kernel {
    use portolan_plan::{Explanation, NodePlan};

    use crate::backend::Inspection;

    pub fn inspect(_: &Explanation, _: &NodePlan, _: u8) -> anyhow::Result<Inspection> {
        anyhow::bail!("--live: nftables is a part of Linux")
    }
}
