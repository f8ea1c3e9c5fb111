//! Lists the names of a zone, for whoever wants them all. What they hold is [`Snapshot::lookup`]'s to say.

use super::config::{PodMode, ZoneApex, ZoneKind};
use super::names::{DashedLabel, Name, reverse_name};
use super::{Snapshot, TYPE_A, TYPE_AAAA, TYPE_NS, TYPE_PTR, TYPE_SRV, TYPE_TXT};

/// The types that a name of ours may hold beside CNAME and SOA.
pub const HELD_TYPES: [u16; 6] = [TYPE_NS, TYPE_A, TYPE_AAAA, TYPE_SRV, TYPE_TXT, TYPE_PTR];

/// The names of a zone in wire form, its own first, in portions of one Service or one address. Some may hold nothing.
pub fn names_of<'a>(snapshot: &'a Snapshot, zone: &'a ZoneApex) -> Box<dyn Iterator<Item = Vec<Vec<u8>>> + Send + 'a> {
    let below = |labels: &[u8]| [labels, &zone.wire].concat();
    let own = [below(b""), below(b"\x0bdns-version"), below(b"\x02ns\x03dns")].to_vec();
    let own = std::iter::once(own);
    match zone.kind {
        ZoneKind::Reverse => {
            let inside = move |name: &Vec<u8>| {
                let name = Name::from_wire(name).ok();
                name.and_then(|name| snapshot.config.zone_of(&name))
                    .is_some_and(|found| found.index == zone.index)
            };
            let addresses = snapshot.addresses().map(|ip| reverse_name(ip).to_vec());
            Box::new(own.chain(addresses.filter(inside).map(|name| vec![name])))
        }
        ZoneKind::Cluster | ZoneKind::ClusterSet => {
            let imported = zone.kind == ZoneKind::ClusterSet;
            let services = snapshot.services().filter(move |_| !imported);
            let services = services.chain(snapshot.imports().filter(move |_| imported));
            let services = services.map(move |names| {
                let service = [&names.key[..], b"\x03svc", &zone.wire].concat();
                let below = names.below().map(|labels| [&labels[..], &service].concat());
                std::iter::once(service.clone()).chain(below).collect()
            });
            let pods = snapshot
                .pod_addresses()
                .filter(move |_| zone.pods == PodMode::Verified && zone.kind == ZoneKind::Cluster)
                .map(move |(ip, namespaces)| {
                    let label = DashedLabel::new(ip);
                    let label = label.as_bytes();
                    namespaces
                        .into_iter()
                        .map(|namespace| {
                            let lengths = [label.len() as u8, namespace.len() as u8];
                            let namespace = namespace.to_ascii_lowercase();
                            [
                                &lengths[..1],
                                label,
                                &lengths[1..],
                                namespace.as_bytes(),
                                b"\x03pod",
                                &zone.wire,
                            ]
                            .concat()
                        })
                        .collect()
                });
            Box::new(own.chain(services).chain(pods))
        }
    }
}
