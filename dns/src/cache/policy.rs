//! How long answers of upstreams are kept, and what may be given when they are old.

use std::time::Duration;

use crate::forward::route::inside;
use crate::zone::names::Name;

/// A zone's name in wire form and lower case.
type ZoneName = Box<[u8]>;

/// Bounds of the time that answers are kept, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// At most; TTLs are lowered to it.
    pub most: u32,
    /// At least.
    pub least: u32,
}

/// Answers that are asked for often are fetched anew before they are old.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefetch {
    /// Queries that make an answer wanted.
    pub amount: u32,
    /// With no gap between them that is longer than this.
    pub within: Duration,
    /// What is left of the lifetime when it is fetched, in hundredths.
    pub percentage: u32,
}

/// Answers that are old are given when upstreams are silent (RFC 8767).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale {
    /// How old, beyond their lifetime.
    pub most: Duration,
    /// How long upstreams are waited for first; 0: not at all, they are asked afterwards.
    pub verify: Duration,
}

/// What is kept for which names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Answers with records.
    pub success: Bounds,
    /// NXDOMAIN and NODATA.
    pub denial: Bounds,
    /// How long SERVFAIL is kept.
    pub servfail: Duration,
    /// Fetching ahead.
    pub prefetch: Option<Prefetch>,
    /// Giving what is old.
    pub stale: Option<Stale>,
    /// TTLs are given as they came, not as they have become.
    pub keep_ttl: bool,
    /// Zones whose records are not kept.
    pub no_success: Vec<ZoneName>,
    /// Zones whose denials are not kept.
    pub no_denial: Vec<ZoneName>,
}

/// What an answer is to the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It has records.
    Success,
    /// It says that there are none.
    Denial,
    /// The upstream could not tell.
    Failure,
}

impl Default for Prefetch {
    fn default() -> Self {
        Self {
            amount: 1,
            within: Duration::from_secs(60),
            percentage: 10,
        }
    }
}

impl Default for Stale {
    /// A day, and 1.8 seconds of patience (RFC 8767 section 5).
    fn default() -> Self {
        Self {
            most: Duration::from_secs(86_400),
            verify: Duration::from_millis(1800),
        }
    }
}

impl Default for Policy {
    /// CoreDNS's bounds, and stale answers while upstreams are silent.
    fn default() -> Self {
        Self {
            success: Bounds { most: 3600, least: 0 },
            denial: Bounds { most: 1800, least: 0 },
            servfail: Duration::from_secs(5),
            prefetch: None,
            stale: Some(Stale::default()),
            keep_ttl: false,
            no_success: Vec::new(),
            no_denial: Vec::new(),
        }
    }
}

// === impl Policy ===

impl Policy {
    /// Whether answers of a kind are kept for a name.
    pub fn keeps(&self, kind: Kind, name: &[u8]) -> bool {
        let zones = match kind {
            Kind::Success => &self.no_success,
            Kind::Denial | Kind::Failure => &self.no_denial,
        };
        zones.is_empty() || Name::from_wire(name).is_ok_and(|name| !zones.iter().any(|zone| inside(&name, zone)))
    }

    /// For how long an answer is kept that may be kept for `seconds`. A TTL of 0 is not kept unless a floor is set.
    pub fn lifetime(&self, kind: Kind, seconds: u32) -> Duration {
        let bounds = match kind {
            Kind::Success => self.success,
            Kind::Denial => self.denial,
            Kind::Failure => return self.servfail,
        };
        Duration::from_secs(seconds.max(bounds.least).min(bounds.most).into())
    }

    /// The highest TTL that a kind of answer carries.
    pub fn most(&self, kind: Kind) -> u32 {
        match kind {
            Kind::Success => self.success.most,
            Kind::Denial => self.denial.most,
            Kind::Failure => u32::MAX,
        }
    }
}
