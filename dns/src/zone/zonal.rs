//! Names of the endpoints that run in one zone of the infrastructure, as CoreDNS's option `zonal` has them:
//! `ZONE.pin._zone.SERVICE` holds those endpoints of a headless Service, `ZONE.prefer._zone.SERVICE` all of them where the
//! zone has none. A zone's name may have dots.

use std::collections::BTreeMap;
use std::sync::Arc;

use portolan_model::EndpointSlice;

use super::build::{ServiceAnswer, ServiceNames};
use super::config::Naming;
use super::names::{Name, wire_from_text};

/// The label between the directive and the Service.
const ANCHOR: &[u8] = b"_zone";

/// The endpoints of one headless Service, by the zone that they run in.
#[derive(Debug, PartialEq, Eq)]
pub struct Zonal(BTreeMap<Box<[u8]>, ServiceNames>);

// === impl Zonal ===

impl Zonal {
    /// Sorts the ready endpoints of slices by zone; zones that are no name in DNS have none.
    pub(super) fn build(key: &Arc<[u8]>, slices: &[EndpointSlice], naming: &Naming) -> Self {
        let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
        let ready = endpoints.filter(|endpoint| endpoint.conditions.ready);
        let mut zones: Vec<&Arc<str>> = ready.filter_map(|endpoint| endpoint.zone()).collect();
        zones.sort_unstable();
        zones.dedup();
        let names = |zone: &Arc<str>| {
            let mut wire = wire_from_text(zone).ok()?.into_vec();
            // Without the root label: it stands in the middle of a name.
            wire.pop();
            wire.make_ascii_lowercase();
            let mut slices = slices.to_vec();
            for slice in &mut slices {
                let inside = slice.endpoints.iter().filter(|endpoint| endpoint.zone() == Some(zone));
                slice.endpoints = inside.cloned().collect();
            }
            Some((wire.into(), ServiceNames::of_endpoints(key.clone(), &slices, naming)))
        };
        Self(zones.into_iter().filter_map(names).collect())
    }

    /// The question for a name that ends in `_zone` before the Service, which stands at label `depth` of it; `all` are the
    /// Service's own names. `None` when it is no such name.
    pub(super) fn answer<'a>(
        &'a self,
        all: &'a ServiceNames,
        name: &Name,
        depth: usize,
        qtype: u16,
    ) -> Option<ServiceAnswer<'a>> {
        if name.label(depth - 1) != ANCHOR {
            return None;
        }
        // Names stand below these, so they exist. CoreDNS denies them.
        let Some(directive) = depth.checked_sub(2) else {
            return Some(ServiceAnswer::NoData);
        };
        let prefer = match name.label(directive) {
            b"pin" => false,
            b"prefer" => true,
            _ => return Some(ServiceAnswer::NxDomain),
        };
        let found = match directive {
            0 => return Some(ServiceAnswer::NoData),
            labels => self.0.get(name.span(0, labels)),
        };
        // Every zone exists as a name: a replica that has seen less than another one must not deny what the other has.
        Some(match (found, prefer) {
            (Some(names), _) => names.answer_at(qtype, depth),
            (None, true) => all.answer_at(qtype, depth),
            (None, false) => ServiceAnswer::NoData,
        })
    }
}
