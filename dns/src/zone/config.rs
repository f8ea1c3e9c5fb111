//! What the zone is told at start: its zones, TTLs and how pods are named.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::build::split;
use super::names::{Name, NameError, wire_from_text};

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
    /// Names by address.
    Reverse {
        /// Whether an address that is not ours is asked upstream. Otherwise it does not exist.
        fallthrough: bool,
    },
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
}

/// The configuration of all zones.
#[derive(Clone, Debug)]
pub struct ZoneConfig {
    /// Longest name first, so that the first match is the closest.
    zones: Vec<ZoneApex>,
    /// The cluster zone that PTR and NS records name.
    pub primary: Box<[u8]>,
    /// Seconds that clients may keep an answer.
    pub ttl: u32,
    /// Seconds that clients may keep a negative answer (the SOA's minimum and TTL, RFC 2308).
    pub negative_ttl: u32,
    /// How pods are named.
    pub pods: PodMode,
    /// The DNS Service that NS records name, as labels `service.namespace` in wire form.
    pub dns_service: Box<[u8]>,
    /// Our own IPv4 addresses: what `ns.dns` holds while there is no DNS Service.
    pub own_v4: Box<[Ipv4Addr]>,
    /// Our own IPv6 addresses.
    pub own_v6: Box<[Ipv6Addr]>,
}

// === impl ZoneConfig ===

impl ZoneConfig {
    /// Zones by name, the primary one first, and whole reverse zones that fall through.
    ///
    /// # Errors
    /// Names the zone that is no name.
    pub fn new(cluster_zones: &[String]) -> Result<Self, (String, NameError)> {
        let mut zones = Vec::new();
        let fallthrough = ZoneKind::Reverse { fallthrough: true };
        let named = cluster_zones.iter().map(|zone| (zone.as_str(), ZoneKind::Cluster));
        for (text, kind) in named.chain([("in-addr.arpa", fallthrough), ("ip6.arpa", fallthrough)]) {
            let wire = wire_from_text(&text.to_ascii_lowercase()).map_err(|e| (text.to_owned(), e))?;
            let labels = Name::from_wire(&wire).map_err(|e| (text.to_owned(), e))?.labels();
            zones.push(ZoneApex {
                wire,
                labels,
                kind,
                index: 0,
            });
        }
        let primary = zones.first().map(|zone| zone.wire.clone()).unwrap_or_default();
        zones.sort_by_key(|zone| std::cmp::Reverse(zone.labels));
        zones.dedup_by(|a, b| a.wire == b.wire);
        for (index, zone) in (0..=u8::MAX).zip(&mut zones) {
            zone.index = index;
        }
        Ok(Self {
            zones,
            primary,
            ttl: 5,
            negative_ttl: 5,
            pods: PodMode::Disabled,
            dns_service: (*b"\x08kube-dns\x0bkube-system").into(),
            own_v4: Box::default(),
            own_v6: Box::default(),
        })
    }

    /// Sets the addresses that `ns.dns` holds while there is no DNS Service.
    pub fn set_own_addresses(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        (self.own_v4, self.own_v6) = split(addresses);
    }

    /// Sets whether the reverse zones ask upstream for addresses that are not ours.
    pub fn set_fallthrough(&mut self, fallthrough: bool) {
        for zone in &mut self.zones {
            if let ZoneKind::Reverse { .. } = zone.kind {
                zone.kind = ZoneKind::Reverse { fallthrough };
            }
        }
    }

    /// The closest zone that a name lies in.
    pub fn zone_of(&self, name: &Name) -> Option<&ZoneApex> {
        let inside = |zone: &&ZoneApex| {
            name.labels()
                .checked_sub(zone.labels)
                .is_some_and(|above| name.suffix(above) == &*zone.wire)
        };
        self.zones.iter().find(inside)
    }

    /// Every zone, the longest name first.
    pub fn zones(&self) -> &[ZoneApex] {
        &self.zones
    }
}
