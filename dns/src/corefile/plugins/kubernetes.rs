//! Plugin `kubernetes`: the cluster's zones.

use std::path::PathBuf;
use std::time::Duration;

use super::super::Place;
use super::super::line::{Line, ZoneName};
use crate::zone::config::PodMode;

/// What it says.
#[derive(Clone, Debug)]
pub struct Kubernetes {
    /// Where it stands.
    pub place: Place,
    /// Its zones, reverse zones among them.
    pub zones: Vec<ZoneName>,
    /// `endpoint`: the API server.
    pub endpoint: Option<String>,
    /// `kubeconfig`.
    pub kubeconfig: Option<PathBuf>,
    /// `namespaces`: only these.
    pub namespaces: Vec<String>,
    /// `labels`: only Services with these labels.
    pub labels: Option<String>,
    /// `namespace_labels`: only namespaces with these labels.
    pub namespace_labels: Option<String>,
    /// `pods`.
    pub pods: PodMode,
    /// `endpoint_pod_names`: endpoints are named after their pods.
    pub endpoint_pod_names: bool,
    /// `ttl` in seconds.
    pub ttl: u32,
    /// `noendpoints`: no names of endpoints.
    pub noendpoints: bool,
    /// `fallthrough`: in these zones, or in all, ask on when there is no such name.
    pub fallthrough: Option<Vec<ZoneName>>,
    /// `ignore empty_service`: a Service without ready endpoints does not exist.
    pub ignore_empty_service: bool,
    /// `multicluster`: zones of ServiceImports.
    pub multicluster: Vec<ZoneName>,
    /// `zonal`: the endpoints of headless Services have names by zone, too.
    pub zonal: bool,
    /// `startup_timeout`.
    pub startup_timeout: Option<Duration>,
}

const KNOWN: &str = "endpoint, kubeconfig, namespaces, labels, namespace_labels, pods, endpoint_pod_names, ttl, \
                     noendpoints, fallthrough, ignore empty_service, multicluster, zonal, startup_timeout";

/// Reads the plugin; without zones it has those of its server block.
pub fn read(line: &mut Line<'_>, block: &[ZoneName]) -> Kubernetes {
    let mut zones = line.zones();
    if zones.is_empty() {
        zones = block.to_vec();
    }
    let mut found = Kubernetes {
        place: line.place().clone(),
        zones,
        endpoint: None,
        kubeconfig: None,
        namespaces: Vec::new(),
        labels: None,
        namespace_labels: None,
        pods: PodMode::Disabled,
        endpoint_pod_names: false,
        ttl: 5,
        noendpoints: false,
        fallthrough: None,
        ignore_empty_service: false,
        multicluster: Vec::new(),
        zonal: false,
        startup_timeout: None,
    };
    line.each(|line| option(line, &mut found));
    if found.zones.iter().all(|zone| is_reverse(zone)) {
        line.say(
            "names no zone for the cluster's names",
            "write one, such as cluster.local",
        );
    }
    if !found.namespaces.is_empty() && found.namespace_labels.is_some() {
        line.say("has both namespaces and namespace_labels", "keep one of them");
    }
    if found.zonal && found.noendpoints {
        line.say("has both zonal and noendpoints", "keep one of them");
    }
    found
}

/// Whether a zone holds names by address.
pub fn is_reverse(zone: &[u8]) -> bool {
    zone.ends_with(b"\x07in-addr\x04arpa\x00") || zone.ends_with(b"\x03ip6\x04arpa\x00")
}

fn option(line: &mut Line<'_>, found: &mut Kubernetes) {
    match line.name.text.as_str() {
        "endpoint" => found.endpoint = line.one("the API server's URL").map(str::to_owned),
        "kubeconfig" => {
            found.kubeconfig = line.one("a file").map(PathBuf::from);
            if line.word().is_some() {
                line.say("names a context", "make it the current-context of the kubeconfig");
            }
        }
        "namespaces" => found.namespaces = line.rest().into_iter().map(str::to_owned).collect(),
        "labels" => found.labels = selector(line),
        "namespace_labels" => found.namespace_labels = selector(line),
        "pods" => match line.one("disabled, insecure or verified") {
            Some("disabled") => found.pods = PodMode::Disabled,
            Some("insecure") => found.pods = PodMode::Insecure,
            Some("verified") => found.pods = PodMode::Verified,
            Some(other) => line.say(format!("{other:?} is no mode"), "give disabled, insecure or verified"),
            None => {}
        },
        "endpoint_pod_names" => found.endpoint_pod_names = true,
        "ttl" => match line.parse("seconds from 0 to 3600") {
            Some(seconds @ 0..=3600) => found.ttl = seconds,
            Some(_) => line.say("is out of range", "give seconds from 0 to 3600"),
            None => {}
        },
        "noendpoints" => found.noendpoints = true,
        "fallthrough" => found.fallthrough = Some(line.zones()),
        "ignore" => match line.one("empty_service") {
            Some("empty_service") | None => found.ignore_empty_service = true,
            Some(other) => line.say(format!("{other:?} cannot be ignored"), "give empty_service"),
        },
        "multicluster" => found.multicluster = line.zones(),
        "zonal" => found.zonal = true,
        "startup_timeout" => found.startup_timeout = line.duration(),
        "tls" => {
            line.rest();
            line.say(
                "is not read",
                "put the certificates into a kubeconfig and name that: kubeconfig FILE",
            );
        }
        // The watches are few and long; nothing is left to limit.
        "apiserver_qps" | "apiserver_burst" | "apiserver_max_inflight" => {
            line.rest();
        }
        "resyncperiod" | "upstream" | "transfer" => {
            line.rest();
            line.say("is not supported", "remove the line");
        }
        _ => {
            line.rest();
            line.unknown(KNOWN);
        }
    }
    line.end();
}

/// The words of a label selector, which may hold blanks.
fn selector(line: &mut Line<'_>) -> Option<String> {
    let words = line.rest();
    if words.is_empty() {
        line.say("lacks a label selector", "write one such as app=web");
        return None;
    }
    Some(words.join(" "))
}
