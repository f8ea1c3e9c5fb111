//! Whether the kernel can do it: the programs are loaded and attached, and connections go through them.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use portolan_model::{Family, Protocol, ServiceName};
use portolan_plan::{Backend, EndpointSet, Frontend, FrontendKind, NodePlan, PortPlan, Routes, ServicePlan, Verdict};

use super::elements::{Difference, Elements};
use super::load::{Globals, Loaded, Sizes};
use super::mirror::Mirror;
use super::pins::Pins;
use super::{EbpfOptions, node};
use crate::backend::Change;

/// How long a packet through the machine's own loopback may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// A port that leads to the probe's own sockets, and one that leads nowhere.
const SERVED: u16 = 80;
const REFUSED: u16 = 81;

/// What was found to work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Families that connections were made in.
    pub families: Vec<Family>,
    /// A refused connection fails as one, at once; otherwise with "operation not permitted".
    pub refusals: bool,
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let families: Vec<String> = self.families.iter().map(ToString::to_string).collect();
        let refusals = if self.refusals {
            "refused"
        } else {
            "not permitted, for want of bpf_set_retval"
        };
        write!(
            f,
            "TCP and UDP over {} went through the programs; without an endpoint connections are {refusals}",
            families.join(" and ")
        )
    }
}

/// Proves that the kernel can run the eBPF backend: attaches every program with maps of the probe's own, and makes
/// connections to addresses that nobody has (RFC 5737, RFC 3849), which must reach a socket of this process. Other
/// connections are not concerned. Nothing is left behind.
///
/// # Errors
/// Says which step failed, with the kernel's reason.
pub fn probe(options: &EbpfOptions) -> anyhow::Result<Proof> {
    let cgroup = node::cgroup(options.cgroup.as_deref())?;
    let pins = Pins::open(&options.bpffs)
        .and_then(|pins| pins.probe())
        .with_context(|| format!("cannot pin maps in {}", options.bpffs.display()))?;
    let proof = prove(&pins, &cgroup);
    pins.remove_all();
    proof
}

fn prove(pins: &Pins, cgroup: &Path) -> anyhow::Result<Proof> {
    let globals = Globals {
        node_netns: node::netns_cookie(),
        can_set_retval: true,
        host_only: false,
    };
    let mut loaded = Loaded::new(pins, 1, &Sizes::default(), globals)?;
    let mut families = Vec::new();
    let mut plans = Vec::new();
    let mut servers = Vec::new();
    for family in Family::ALL {
        // A machine without IPv6 has no sockets for it.
        let Ok(server) = Server::open(family) else { continue };
        plans.push(server.plan()?);
        servers.push(server);
        families.push(family);
    }
    let change = Change {
        node: Some(NodePlan::default()),
        plans,
        complete: true,
        ..Change::default()
    };
    let wanted = Mirror::adopt(&change, &Elements::default()).elements();
    let difference = Difference::between(&Elements::default(), &wanted);
    loaded.write(&difference).context("cannot write the maps")?;
    loaded.attach(pins, cgroup)?;
    for server in &servers {
        server
            .connect()
            .with_context(|| format!("TCP over {} through the programs", server.family))?;
        server
            .exchange()
            .with_context(|| format!("UDP over {} through the programs", server.family))?;
        server.refused(loaded.globals.can_set_retval)?;
    }
    Ok(Proof {
        families,
        refusals: loaded.globals.can_set_retval,
    })
}

/// Sockets of one family that the probe's connections must reach.
struct Server {
    family: Family,
    tcp: TcpListener,
    udp: UdpSocket,
}

// === impl Server ===

impl Server {
    fn open(family: Family) -> io::Result<Self> {
        let loopback: IpAddr = match family {
            Family::V4 => Ipv4Addr::LOCALHOST.into(),
            Family::V6 => Ipv6Addr::LOCALHOST.into(),
        };
        let udp = UdpSocket::bind((loopback, 0))?;
        udp.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            family,
            tcp: TcpListener::bind((loopback, 0))?,
            udp,
        })
    }

    /// An address that nobody has.
    fn address(&self) -> IpAddr {
        match self.family {
            Family::V4 => Ipv4Addr::new(192, 0, 2, 1).into(),
            Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
        }
    }

    fn plan(&self) -> io::Result<ServicePlan> {
        let port = |protocol, at: SocketAddr| {
            let frontend = |port, verdict| Frontend {
                kind: FrontendKind::ClusterIp,
                address: Some(self.address()),
                port,
                routes: Routes::same(verdict),
                source_ranges: None,
            };
            let forward = Verdict::Forward {
                set: EndpointSet::Cluster,
                masquerade: false,
            };
            PortPlan {
                name: "probe".into(),
                protocol,
                family: self.family,
                affinity_seconds: Some(1),
                cluster: vec![Backend {
                    address: at,
                    local: true,
                }],
                local: Vec::new(),
                serving: vec![at],
                frontends: vec![frontend(SERVED, forward), frontend(REFUSED, Verdict::Reject)],
            }
        };
        Ok(ServicePlan {
            service: ServiceName::new("portolan", format!("probe-{}", self.family)),
            ports: vec![
                port(Protocol::Tcp, self.tcp.local_addr()?),
                port(Protocol::Udp, self.udp.local_addr()?),
            ],
            health_check: None,
            notes: Vec::new(),
        })
    }

    fn connect(&self) -> anyhow::Result<()> {
        let to = SocketAddr::from((self.address(), SERVED));
        let client = TcpStream::connect_timeout(&to, PATIENCE)
            .context("the connection did not reach us: is this process below the cgroup that --cgroup names?")?;
        let peer = client.peer_addr()?;
        ensure!(peer == to, "getpeername says {peer} instead of {to}");
        Ok(())
    }

    fn exchange(&self) -> anyhow::Result<()> {
        let to = SocketAddr::from((self.address(), SERVED));
        let unspecified: IpAddr = match self.family {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        let client = UdpSocket::bind((unspecified, 0))?;
        client.set_read_timeout(Some(PATIENCE))?;
        let mut buffer = [0; 8];
        client.send_to(b"portolan", to)?;
        let (_, from) = self
            .udp
            .recv_from(&mut buffer)
            .context("the datagram did not reach us")?;
        self.udp.send_to(&buffer, from)?;
        let (_, from) = client.recv_from(&mut buffer).context("the answer did not reach us")?;
        ensure!(from == to, "the answer is from {from} instead of {to}");
        Ok(())
    }

    fn refused(&self, named: bool) -> anyhow::Result<()> {
        let to = SocketAddr::from((self.address(), REFUSED));
        let expect = if named {
            io::ErrorKind::ConnectionRefused
        } else {
            io::ErrorKind::PermissionDenied
        };
        match TcpStream::connect_timeout(&to, PATIENCE) {
            Err(error) if error.kind() == expect => Ok(()),
            Err(error) => Err(error).context("a connection that must be refused failed otherwise"),
            Ok(_) => anyhow::bail!("a connection that must be refused was made"),
        }
    }
}
