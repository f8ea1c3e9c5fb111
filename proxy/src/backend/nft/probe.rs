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
use super::netlink::object::Table;
use super::netlink::socket::Socket;
use super::schema::family_number;

/// Proves that the kernel can run the nftables backend: loads tables of another name with every kind of chain, rule and
/// element that we use, for addresses that nobody has (RFC 5737, RFC 3849), and deletes them.
///
/// # Errors
/// Says what the kernel refused.
pub fn probe(options: &NftOptions) -> io::Result<()> {
    let options = NftOptions {
        table: format!("{}-probe", options.table),
        ..options.clone()
    };
    cleanup(&options)?;
    let mut socket = Socket::open()?;
    let nothing = Family::ALL.map(|family| (family, None)).into();
    let (_, difference) = Mirror::adopt(std::iter::once(&specimen()), specimen_node(), nothing, &options);
    let loaded = commit(difference.batch(&options.table), &mut socket);
    // Also when it was refused: nothing is left then, and this does nothing.
    cleanup(&options)?;
    loaded
}

/// Deletes our tables. Nothing else is touched; it is no error when they are not there.
///
/// # Errors
/// When the kernel refuses.
pub fn cleanup(options: &NftOptions) -> io::Result<()> {
    let mut socket = Socket::open()?;
    let mut batch = Batch::new();
    for family in Family::ALL {
        let table = Table {
            family: family_number(family),
            name: &options.table,
        };
        if table.flags(&mut socket)?.is_some() {
            table.delete(&mut batch);
        }
    }
    commit(batch, &mut socket)
}

fn commit(batch: Batch, socket: &mut Socket) -> io::Result<()> {
    batch.commit(socket).map_err(|error| match error {
        BatchError::Io(error) => error,
        BatchError::Refused(refusals) => {
            let text: Vec<String> = refusals.iter().map(ToString::to_string).collect();
            io::Error::other(text.join("; "))
        }
    })
}

/// A node plan that needs every kind of rule.
fn specimen_node() -> NodePlan {
    let ranges: Vec<IpNet> = ["192.0.2.0/28", "2001:db8::/64"]
        .iter()
        .filter_map(|range| range.parse().ok())
        .collect();
    NodePlan {
        pods: Pods::Cidrs(ranges.clone()),
        node_port_addresses: ranges.iter().map(IpNet::addr).collect(),
        service_cidrs: ranges,
        notes: Vec::new(),
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
