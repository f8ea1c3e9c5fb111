//! The subcommands.

pub mod cleanup;
pub mod explain;
pub mod plan;
pub mod run;
pub mod status;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Context;
use portolan_agent::source::{Snapshot, read_once};
use portolan_model::Node;
use portolan_plan::{HostAddress, NodePlan, Options, plan_node};

use crate::cli::{PATIENCE, PlanFlags};
use crate::host;

/// How long the running daemon may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

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

/// Asks the running daemon.
pub(crate) fn ask(daemon: SocketAddr, path: &str) -> anyhow::Result<String> {
    get(daemon, path).with_context(|| format!("no portolan-proxy answers on {daemon} (see its --metrics-bind-address)"))
}

/// HTTP/1.0, so that the answer ends with the connection.
fn get(daemon: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect_timeout(&daemon, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {daemon}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    let first = head.lines().next().unwrap_or_default();
    anyhow::ensure!(first.contains(" 200 "), "it answers {first:?}: {}", body.trim());
    Ok(body.into())
}
