//! Completion of names: what the rest of a pod's search list makes of the first name that the pod asked for.
//!
//! A pod's resolv.conf lists `NAMESPACE.svc.ZONE svc.ZONE ZONE` and the node's own domains, so a name of the outside costs
//! four questions or more, each of both types, before it is asked as it is. The server knows the list as well as the pod.
//! Whether a name exists does not depend on the type that is asked for, so A and AAAA are completed to the same name.

use std::net::IpAddr;

use super::config::{Domain, ZoneApex, ZoneKind};
use super::names::MAX_NAME;
use super::{Snapshot, TYPE_A, TYPE_AAAA};
use crate::answer::Question;

/// The question's own name and those that the pod would ask for next, in wire form. Empty unless the question is the first
/// of the search list of exactly one pod.
pub fn candidates(snapshot: &Snapshot, question: &Question, source: IpAddr) -> Vec<Box<[u8]>> {
    search(snapshot, question, source).unwrap_or_default()
}

fn search(snapshot: &Snapshot, question: &Question, source: IpAddr) -> Option<Vec<Box<[u8]>>> {
    let autopath = snapshot.config.policy.autopath.as_ref()?;
    if !matches!(question.qtype, TYPE_A | TYPE_AAAA) {
        return None;
    }
    let name = &question.name;
    let zone: &ZoneApex = snapshot.config.zone_of(name)?;
    let namespace = snapshot.namespace_of(source)?;
    // base . NAMESPACE . svc . ZONE
    let base = name.labels().checked_sub(zone.labels + 2).filter(|base| *base > 0)?;
    let first = zone.kind == ZoneKind::Cluster
        && name.label(base + 1) == b"svc"
        && name.label(base).eq_ignore_ascii_case(namespace.as_bytes());
    if !first {
        return None;
    }
    // In the letter case that the client sent.
    let front = &name.sent()[..name.start(base)];
    let mut list: Vec<Box<[u8]>> = vec![name.sent().into()];
    let svc = [&b"\x03svc"[..], &zone.wire].concat();
    let suffixes = [&svc[..], &zone.wire].into_iter();
    let suffixes = suffixes.chain(autopath.search.iter().map(Domain::wire));
    for suffix in suffixes.chain([&[0][..]]) {
        let wire = [front, suffix].concat();
        if wire.len() <= MAX_NAME {
            list.push(wire.into());
        }
    }
    Some(list)
}
