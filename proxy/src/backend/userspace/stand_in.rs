//! Which loopback address and port stand in for a frontend whose own address is not this machine's.
//!
//! The Service's own port if it is free, then ports that follow from the frontend's name: the same after a restart, and
//! whatever order Services came in.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;

use portolan_model::Family;

use super::claim::FrontendKey;
use super::socket;
use super::target::Target;

/// Below the systems' ephemeral ports and the API's default node ports.
const FIRST: u16 = 20_000;
const COUNT: u16 = 10_000;
/// How many ports are tried before any will do.
const TRIES: u16 = 16;

/// Where to try, best first. The last ones have port 0: any that is free.
pub(super) fn candidates(key: &FrontendKey, target: &Target) -> impl Iterator<Item = SocketAddr> + use<> {
    let ip = socket::loopback(Family::of(&key.address.ip()));
    // Not the protocol: both frontends of a DNS Service should get the same port.
    let mut hasher = DefaultHasher::new();
    (&target.service, key.address).hash(&mut hasher);
    let offset = (hasher.finish() % u64::from(COUNT)) as u16;
    let by_name = (0..TRIES).map(move |step| FIRST + (offset + step) % COUNT);
    let any = std::iter::repeat_n(0, usize::from(TRIES));
    let ports = std::iter::once(key.address.port()).chain(by_name).chain(any);
    ports.map(move |port| SocketAddr::new(ip, port))
}
