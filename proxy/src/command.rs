//! The subcommands.

pub mod cleanup;
pub mod explain;
pub mod plan;
pub mod run;
pub mod status;

use anyhow::Context;
use portolan_agent::source::{Snapshot, read_once};
use portolan_model::Node;
use portolan_plan::{HostAddress, NodePlan, Options, plan_node};

use crate::cli::{PATIENCE, PlanFlags};
use crate::host;

/// What the one-shot commands look at.
pub(crate) struct Look {
    pub(crate) snapshot: Snapshot,
    pub(crate) options: Options,
    pub(crate) node: Option<Node>,
    pub(crate) node_plan: NodePlan,
    pub(crate) host: Vec<HostAddress>,
}

/// Reads the source once and plans the node.
pub(crate) async fn look(flags: &PlanFlags) -> anyhow::Result<Look> {
    let settings = flags.settings()?;
    settings.notes.iter().for_each(|note| eprintln!("note: {note}"));
    let snapshot = read_once(flags.source(&settings), PATIENCE)
        .await
        .context("cannot read the source")?;
    for problem in &snapshot.problems {
        eprintln!("warning: {problem}");
    }
    let options = settings.options;
    let host = host::addresses().context("cannot list this machine's addresses")?;
    let node = snapshot.world.node(&options.node_name).cloned();
    let node = node.or_else(|| {
        flags
            .source
            .manifests
            .as_ref()
            .map(|_| host::node_from_machine(&options.node_name, &host))
    });
    let cidrs: Vec<_> = snapshot
        .world
        .service_cidrs()
        .flat_map(|cidr| cidr.cidrs.iter().copied())
        .collect();
    let node_plan = plan_node(node.as_ref(), &host, &cidrs, &options);
    Ok(Look {
        snapshot,
        options,
        node,
        node_plan,
        host,
    })
}
