//! Whether the kernel can do it, and taking everything away again.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use portolan_model::{Family, Protocol, ServiceName};
use portolan_plan::{
    Backend, EndpointSet, Frontend, FrontendKind, NodePlan, Pods, PortPlan, Routes, ServicePlan, Verdict,
};

use super::NftOptions;
use super::mirror::Mirror;
use super::netlink::batch::{Batch, BatchError};
use super::netlink::listing;
use super::netlink::object::Table;
use super::netlink::socket::Socket;
use super::schema::family_number;

/// Proves that the kernel can run the nftables backend: loads tables of another name with every kind of chain, rule and
/// element that we use, for addresses that nobody has (RFC 5737, RFC 3849), and deletes them.
///
/// # Errors
/// Says what the kernel refused.
pub fn probe(options: &NftOptions) -> io::Result<()> {
    let mut socket = Socket::open()?;
    // A kernel without IPv6 can be a node, one without IPv4 has not been seen.
    probe_family(&mut socket, Family::V4, options).map_err(into_io)
}

/// The same for one family.
pub(crate) fn probe_family(socket: &mut Socket, family: Family, options: &NftOptions) -> Result<(), BatchError> {
    let options = NftOptions {
        table: format!("{}-probe", options.table),
        ..options.clone()
    };
    remove(socket, &options)?;
    let mut specimen = specimen();
    specimen.ports.retain(|port| port.family == family);
    let mut node = specimen_node();
    node.node_port_addresses.retain(|address| Family::of(address) == family);
    let nothing = vec![(family, None)];
    let (_, difference) = Mirror::adopt(std::iter::once(&specimen), node, nothing, &options);
    let loaded = difference.batch(&options.table).commit(socket);
    // Also when it was refused: nothing is left then, and this does nothing.
    remove(socket, &options)?;
    loaded
}

/// Every chain of every table on this node, as `FAMILY TABLE CHAIN`: whose they are says who is here.
///
/// # Errors
/// When nf_tables cannot be asked.
pub(crate) fn all_chains() -> io::Result<Vec<String>> {
    listing::all_chains(&mut Socket::open()?)
}

/// Deletes our tables. Nothing else is touched; it is no error when they are not there.
///
/// # Errors
/// When the kernel refuses.
pub fn cleanup(options: &NftOptions) -> io::Result<()> {
    remove(&mut Socket::open()?, options).map_err(into_io)
}

fn remove(socket: &mut Socket, options: &NftOptions) -> Result<(), BatchError> {
    let mut batch = Batch::new();
    for family in Family::ALL {
        let table = Table {
            family: family_number(family),
            name: &options.table,
        };
        if table.flags(socket)?.is_some() {
            table.delete(&mut batch);
        }
    }
    batch.commit(socket)
}

fn into_io(error: BatchError) -> io::Error {
    match error {
        BatchError::Io(error) => error,
        BatchError::Refused(refusals) => {
            let text: Vec<String> = refusals.iter().map(ToString::to_string).collect();
            io::Error::other(text.join("; "))
        }
    }
}

/// A node plan that needs every kind of rule.
fn specimen_node() -> NodePlan {
    let ranges: Vec<IpNet> = ["192.0.2.0/28", "2001:db8::/64"]
        .iter()
        .filter_map(|range| range.parse().ok())
        .collect();
    NodePlan {
        pods: Pods::Cidrs(ranges.clone()),
        own_pods: ranges.clone(),
        node_port_addresses: ranges.iter().map(IpNet::addr).collect(),
        service_cidrs: ranges,
        ..NodePlan::default()
    }
}

/// A Service that needs every kind of chain and element.
fn specimen() -> ServicePlan {
    let addresses: [(Family, Option<IpAddr>); 2] = [
        (Family::V4, "192.0.2.1".parse().ok()),
        (Family::V6, "2001:db8::1".parse().ok()),
    ];
    let port = |(family, address): (Family, Option<IpAddr>)| {
        let address = address?;
        let backend = Backend {
            address: (address, 1).into(),
            local: true,
        };
        let forward = |set, masquerade| Verdict::Forward { set, masquerade };
        let frontend = |kind, address, port, routes| Frontend {
            kind,
            address,
            port,
            routes,
            source_ranges: None,
        };
        let routes = Routes {
            pod: forward(EndpointSet::Cluster, false),
            node: forward(EndpointSet::Cluster, true),
            outside: forward(EndpointSet::Local, false),
        };
        let range: Arc<[IpNet]> = [IpNet::new(address, 24).ok()?].into();
        let restricted = Frontend {
            source_ranges: Some(range),
            ..frontend(
                FrontendKind::LoadBalancerIp,
                Some(address),
                3,
                Routes::same(Verdict::Drop),
            )
        };
        Some(PortPlan {
            name: "probe".into(),
            protocol: Protocol::Sctp,
            family,
            affinity_seconds: Some(1),
            cluster: vec![backend],
            local: vec![backend],
            serving: Vec::new(),
            frontends: vec![
                frontend(FrontendKind::ClusterIp, Some(address), 1, routes),
                frontend(
                    FrontendKind::ExternalIp,
                    Some(address),
                    2,
                    Routes::same(Verdict::Reject),
                ),
                restricted,
                frontend(FrontendKind::NodePort, None, 4, routes),
            ],
        })
    };
    ServicePlan {
        service: ServiceName::new("portolan", "probe"),
        ports: addresses.into_iter().filter_map(port).collect(),
        health_check: None,
        notes: Vec::new(),
    }
}
