//! What the zones are told: their names, TTLs, and which objects have names in them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use portolan_model::{Event, Namespace, Object, Selector, parse::parse_cidr};
use thiserror::Error;

use super::build::split;
use super::names::{Name, NameError, reverse_zones, text, wire_from_text};
use super::policy::Policy;

/// Answers for `1-2-3-4.namespace.pod.zone`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodMode {
    /// No such names.
    #[default]
    Disabled,
    /// Whatever address the name spells.
    Insecure,
    /// Only addresses of pods in that namespace.
    Verified,
}

/// What a zone holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZoneKind {
    /// Services and pods by name.
    Cluster,
    /// Services that other clusters export (ServiceImports), as in `clusterset.local`.
    ClusterSet,
    /// Names by address.
    Reverse,
}

/// A name and everything below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// The name in lower case and wire form.
    wire: Box<[u8]>,
    labels: usize,
}

/// One zone as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneSpec {
    /// A name such as `cluster.local` or `10.in-addr.arpa`, or a range of addresses such as `10.96.0.0/12`, which stands
    /// for its reverse zones.
    pub name: String,
    /// Whether it holds ServiceImports (CoreDNS's `multicluster`).
    pub multicluster: bool,
    /// Seconds that clients may keep an answer, 0 to 3600.
    pub ttl: u32,
    /// Seconds that clients may keep a negative answer (the SOA's minimum and TTL, RFC 2308).
    pub negative_ttl: u32,
    /// How pods are named.
    pub pods: PodMode,
    /// Names at or below these that do not exist are asked upstream; `.` is every name.
    pub fallthrough: Vec<String>,
}

/// One zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneApex {
    /// Its name in lower case and wire form.
    pub wire: Box<[u8]>,
    /// How many labels that has.
    pub labels: usize,
    /// What it holds.
    pub kind: ZoneKind,
    /// Its place in [`ZoneConfig::zones`].
    pub index: u8,
    /// Seconds that clients may keep an answer.
    pub ttl: u32,
    /// Seconds that clients may keep a negative answer.
    pub negative_ttl: u32,
    /// How pods are named.
    pub pods: PodMode,
    /// Names at or below these that do not exist are asked upstream.
    pub fallthrough: Box<[Domain]>,
}

/// Which objects have names. The same for every zone, because the names are built once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Naming {
    /// An endpoint without a hostname is named after its pod instead of its address (`endpoint_pod_names`).
    pub endpoint_pod_names: bool,
    /// Endpoints have names, and headless Services exist (the opposite of `noendpoints`).
    pub endpoints: bool,
    /// A Service that has no ready endpoint exists (the opposite of `ignore empty_service`).
    pub empty_services: bool,
    /// The endpoints of headless Services have names by zone, too (`zonal`).
    pub zonal: bool,
    /// Only these namespaces; none given means every one (`namespaces`).
    pub namespaces: BTreeSet<String>,
    /// Only namespaces with these labels (`namespace_labels`).
    pub namespace_labels: Selector,
    /// Only Services with these labels (`labels`). The source keeps to it; see `portolan_agent::source::Wants::labels`.
    pub labels: Selector,
}

/// The configuration of all zones.
#[derive(Clone, Debug)]
pub struct ZoneConfig {
    /// Longest name first, so that the first match is the closest.
    zones: Vec<ZoneApex>,
    /// The cluster zone that PTR and NS records name.
    pub primary: Box<[u8]>,
    /// Which objects have names.
    pub naming: Naming,
    /// How queries are treated beside their name.
    pub policy: Arc<Policy>,
    /// The DNS Service that NS records name, as labels `service.namespace` in wire form.
    pub dns_service: Box<[u8]>,
    /// Our own IPv4 addresses: what `ns.dns` holds while there is no DNS Service.
    pub own_v4: Box<[Ipv4Addr]>,
    /// Our own IPv6 addresses.
    pub own_v6: Box<[Ipv6Addr]>,
    /// Domains inside our zones whose names are not ours.
    elsewhere: Box<[Domain]>,
}

/// Why zones cannot be served.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ZoneError {
    /// A zone is no name and no range.
    #[error("zone {zone:?}: {cause}")]
    Name {
        /// As it was given.
        zone: String,
        /// What is wrong with it.
        cause: NameError,
    },
    /// All zones are reverse zones.
    #[error("there is no zone for names such as cluster.local, only zones for addresses")]
    NoClusterZone,
    /// Counters have room for 255.
    #[error("there are more than 255 zones; a range that ends at a multiple of 8 bits (IPv4) or 4 (IPv6) is one zone")]
    TooMany,
}

// === impl Domain ===

impl Domain {
    /// Reads a name as people write it.
    ///
    /// # Errors
    /// When the text is no name.
    pub fn new(text: &str) -> Result<Self, NameError> {
        Self::from_wire(wire_from_text(&text.to_ascii_lowercase())?)
    }

    /// A range of addresses as its reverse zones, a name as itself.
    ///
    /// # Errors
    /// When the text is neither.
    pub fn of(text: &str) -> Result<Vec<Self>, NameError> {
        match range(text) {
            Some(net) => reverse_zones(&net).into_iter().map(Self::from_wire).collect(),
            None => Ok(vec![Self::new(text)?]),
        }
    }

    fn from_wire(wire: Box<[u8]>) -> Result<Self, NameError> {
        let labels = Name::from_wire(&wire)?.labels();
        Ok(Self { wire, labels })
    }

    /// Whether a name lies in it.
    pub fn contains(&self, name: &Name) -> bool {
        let above = name.labels().checked_sub(self.labels);
        above.is_some_and(|above| name.suffix(above) == &*self.wire)
    }

    /// The name in lower case and wire form.
    pub fn wire(&self) -> &[u8] {
        &self.wire
    }
}

impl std::fmt::Display for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&text(&self.wire))
    }
}

/// A range of addresses, when the text is one: a slash never stands in a zone's name otherwise.
fn range(text: &str) -> Option<IpNet> {
    text.contains('/').then(|| parse_cidr(text).ok()).flatten()
}

// === impl ZoneSpec ===

impl ZoneSpec {
    /// A zone of that name with CoreDNS's defaults: TTL 5, no pods, and nothing is asked upstream.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            multicluster: false,
            ttl: 5,
            negative_ttl: 5,
            pods: PodMode::Disabled,
            fallthrough: Vec::new(),
        }
    }

    /// Cluster zones by name, and whole reverse zones that fall through.
    pub fn usual(cluster_zones: &[String]) -> Vec<Self> {
        let cluster = cluster_zones.iter().map(Self::new);
        let reverse = ["in-addr.arpa", "ip6.arpa"].map(|name| Self {
            fallthrough: vec![".".to_owned()],
            ..Self::new(name)
        });
        cluster.chain(reverse).collect()
    }
}

// === impl ZoneApex ===

impl ZoneApex {
    /// Whether a name of it that does not exist is asked upstream.
    pub fn falls_through(&self, name: &Name) -> bool {
        self.fallthrough.iter().any(|domain| domain.contains(name))
    }
}

// === impl Naming ===

impl Default for Naming {
    fn default() -> Self {
        Self {
            endpoint_pod_names: false,
            endpoints: true,
            empty_services: true,
            zonal: false,
            namespaces: BTreeSet::new(),
            namespace_labels: Selector::default(),
            labels: Selector::default(),
        }
    }
}

impl Naming {
    /// Takes out of an object what no name depends on, so that it costs no memory.
    pub fn reduce(&self, event: &mut Event) {
        let Event::Apply(Object::EndpointSlice(slice)) = event else {
            return;
        };
        for endpoint in &mut slice.endpoints {
            (endpoint.node_name, endpoint.hints) = (None, None);
            if let Some(mut names) = endpoint.names.take() {
                names.zone = names.zone.filter(|_| self.zonal);
                names.target_pod = names.target_pod.filter(|_| self.endpoint_pod_names);
                endpoint.names = names.boxed();
            }
        }
    }

    /// Whether names of a namespace exist, given the object when it is known.
    pub fn exposes(&self, name: &str, object: Option<&Namespace>) -> bool {
        let named = self.namespaces.is_empty() || self.namespaces.contains(name);
        let labelled = self.namespace_labels.is_empty()
            || object.is_some_and(|namespace| {
                let label = |key: &str| namespace.labels.get(key).map(|value| &**value);
                self.namespace_labels.matches(label)
            });
        named && labelled
    }
}

// === impl ZoneConfig ===

impl ZoneConfig {
    /// Cluster zones by name, the primary one first, and whole reverse zones that fall through.
    ///
    /// # Errors
    /// Names the zone that cannot be served.
    pub fn new(cluster_zones: &[String]) -> Result<Self, ZoneError> {
        Self::from_zones(&ZoneSpec::usual(cluster_zones))
    }

    /// Any zones; the first cluster zone is the primary one. Of two with one name the first counts.
    ///
    /// # Errors
    /// Names the zone that cannot be served.
    pub fn from_zones(specs: &[ZoneSpec]) -> Result<Self, ZoneError> {
        let mut zones: Vec<ZoneApex> = Vec::new();
        for spec in specs {
            let failed = |cause| ZoneError::Name {
                zone: spec.name.clone(),
                cause,
            };
            let fallthrough: Result<Vec<_>, _> = spec.fallthrough.iter().map(|name| Domain::of(name)).collect();
            let fallthrough: Vec<Domain> = fallthrough.map_err(failed)?.into_iter().flatten().collect();
            for domain in Domain::of(&spec.name).map_err(failed)? {
                if zones.iter().any(|known| known.wire == domain.wire) {
                    continue;
                }
                zones.push(ZoneApex {
                    kind: match is_reverse(&domain.wire) {
                        true => ZoneKind::Reverse,
                        false if spec.multicluster => ZoneKind::ClusterSet,
                        false => ZoneKind::Cluster,
                    },
                    wire: domain.wire,
                    labels: domain.labels,
                    index: 0,
                    ttl: spec.ttl,
                    negative_ttl: spec.negative_ttl,
                    pods: spec.pods,
                    fallthrough: fallthrough.clone().into(),
                });
            }
        }
        let primary = zones.iter().find(|zone| zone.kind == ZoneKind::Cluster);
        let primary = primary.or_else(|| zones.iter().find(|zone| zone.kind == ZoneKind::ClusterSet));
        let primary = primary.ok_or(ZoneError::NoClusterZone)?.wire.clone();
        if zones.len() > usize::from(u8::MAX) {
            return Err(ZoneError::TooMany);
        }
        zones.sort_by_key(|zone| std::cmp::Reverse(zone.labels));
        for (index, zone) in (0..=u8::MAX).zip(&mut zones) {
            zone.index = index;
        }
        Ok(Self {
            zones,
            primary,
            naming: Naming::default(),
            policy: Arc::default(),
            dns_service: (*b"\x08kube-dns\x0bkube-system").into(),
            own_v4: Box::default(),
            own_v6: Box::default(),
            elsewhere: Box::default(),
        })
    }

    /// No zones: every name is someone else's.
    pub fn nothing() -> Self {
        Self {
            zones: Vec::new(),
            primary: Box::new([0]),
            naming: Naming::default(),
            policy: Arc::default(),
            dns_service: Box::default(),
            own_v4: Box::default(),
            own_v6: Box::default(),
            elsewhere: Box::default(),
        }
    }

    /// Sets which names below our zones are not ours. What is not below a zone of ours is passed over.
    pub fn set_elsewhere(&mut self, names: impl IntoIterator<Item = String>) {
        let inside = |domain: &Domain| {
            let name = Name::from_wire(&domain.wire);
            name.is_ok_and(|name| self.zone_of(&name).is_some_and(|zone| zone.labels < domain.labels))
        };
        let domains = names.into_iter().filter_map(|name| Domain::new(&name).ok());
        self.elsewhere = domains.filter(inside).collect();
    }

    /// Sets the addresses that `ns.dns` holds while there is no DNS Service.
    pub fn set_own_addresses(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        (self.own_v4, self.own_v6) = split(addresses);
    }

    /// Sets the key of server cookies, unless the configuration has one.
    pub fn set_cookie_secret(&mut self, secret: [u8; 16]) {
        if self.policy.cookie_secret.is_none() {
            Arc::make_mut(&mut self.policy).cookie_secret = Some(secret);
        }
    }

    /// Sets the TTLs of every zone, in seconds.
    pub fn set_ttl(&mut self, ttl: u32, negative_ttl: u32) {
        for zone in &mut self.zones {
            (zone.ttl, zone.negative_ttl) = (ttl, negative_ttl);
        }
    }

    /// Sets how pods are named in every zone.
    pub fn set_pods(&mut self, pods: PodMode) {
        for zone in &mut self.zones {
            zone.pods = pods;
        }
    }

    /// Sets whether the reverse zones ask upstream for addresses that are not ours.
    pub fn set_fallthrough(&mut self, fallthrough: bool) {
        let everything = Domain::from_wire([0].into());
        for zone in self.zones.iter_mut().filter(|zone| zone.kind == ZoneKind::Reverse) {
            zone.fallthrough = everything.iter().filter(|_| fallthrough).cloned().collect();
        }
    }

    /// The closest zone that a name lies in.
    pub fn zone_of(&self, name: &Name) -> Option<&ZoneApex> {
        let inside = |zone: &&ZoneApex| {
            name.labels()
                .checked_sub(zone.labels)
                .is_some_and(|above| name.suffix(above) == &*zone.wire)
        };
        let zone = self.zones.iter().find(inside)?;
        let elsewhere = |domain: &Domain| domain.labels > zone.labels && domain.contains(name);
        (self.elsewhere.is_empty() || !self.elsewhere.iter().any(elsewhere)).then_some(zone)
    }

    /// Every zone, the longest name first.
    pub fn zones(&self) -> &[ZoneApex] {
        &self.zones
    }

    /// Whether pods have to be known: for `pods verified`, and for completion, which asks who has an address.
    pub fn needs_pods(&self) -> bool {
        self.zones.iter().any(|zone| zone.pods == PodMode::Verified) || self.policy.autopath.is_some()
    }

    /// Whether ServiceImports have to be known.
    pub fn needs_imports(&self) -> bool {
        self.zones.iter().any(|zone| zone.kind == ZoneKind::ClusterSet)
    }
}

fn is_reverse(wire: &[u8]) -> bool {
    wire.ends_with(b"\x07in-addr\x04arpa\x00") || wire.ends_with(b"\x03ip6\x04arpa\x00")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zones(names: &[&str]) -> Vec<String> {
        let specs: Vec<_> = names.iter().map(|name| ZoneSpec::new(*name)).collect();
        let config = ZoneConfig::from_zones(&specs).unwrap_or_else(|error| panic!("{error}"));
        config.zones().iter().map(|zone| text(&zone.wire)).collect()
    }

    #[test]
    fn ranges_are_their_reverse_zones() {
        let check = |range: &str, expect: &[&str]| {
            let mut found = zones(&["a", range]);
            found.retain(|zone| zone != "a.");
            found.sort();
            let mut expect: Vec<String> = expect.iter().map(|zone| (*zone).to_owned()).collect();
            expect.sort();
            assert_eq!(found, expect, "{range}");
        };
        check("10.0.0.0/8", &["10.in-addr.arpa."]);
        check("10.96.0.0/15", &["96.10.in-addr.arpa.", "97.10.in-addr.arpa."]);
        check("192.0.2.4/32", &["4.2.0.192.in-addr.arpa."]);
        check("0.0.0.0/0", &["in-addr.arpa."]);
        check(
            "fd00:96::/112",
            &["0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa."],
        );
        check(
            "2001:db8::/31",
            &["8.b.d.0.1.0.0.2.ip6.arpa.", "9.b.d.0.1.0.0.2.ip6.arpa."],
        );
    }

    #[test]
    fn what_cannot_be_served_is_named() {
        let check = |names: &[&str], expect: &str| {
            let specs: Vec<_> = names.iter().map(|name| ZoneSpec::new(*name)).collect();
            let error = ZoneConfig::from_zones(&specs).err().map(|error| error.to_string());
            assert!(
                error.as_deref().is_some_and(|error| error.contains(expect)),
                "{error:?}"
            );
        };
        check(&["a..b"], "zone \"a..b\": a label is empty");
        check(&["10.in-addr.arpa"], "no zone for names");
        check(&["a", "10.0.0.0/9", "11.0.0.0/9"], "more than 255 zones");
    }
}
