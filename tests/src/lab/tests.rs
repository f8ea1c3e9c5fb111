//! The lab itself, on the real kernel: these tests need root and fail without it.

use std::path::Path;

use super::*;
use crate::probe::{self, FailureKind, Report};

fn connect(lab: &Lab, from: &str, args: &[&str]) -> Report {
    let place = lab.place(from).unwrap();
    let args = ["connect"].iter().chain(args);
    let text = place.output(probe::binary().unwrap(), args).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn web(lab: &Lab, name: &str, node: &str) -> Arc<Pod> {
    let listen = |protocol: &str, port| Listen {
        protocol: protocol.into(),
        port,
    };
    lab.start_pod(&PodRequest {
        namespace: "default".into(),
        name: name.into(),
        node: node.into(),
        listen: vec![listen("TCP", 8080), listen("UDP", 8080)],
        ..PodRequest::default()
    })
    .unwrap()
}

#[test]
fn pods_nodes_and_outside_reach_each_other_with_their_own_addresses() {
    let lab = Lab::builder()
        .nodes(2)
        .outside(1)
        .second_addresses(true)
        .build()
        .unwrap();
    let one = web(&lab, "web-1", "node-1");
    let two = web(&lab, "web-2", "node-2");
    assert_eq!(one.address.v4.to_string(), "10.244.1.2");
    for (from, sees) in [
        ("web-1", one.address),
        ("node-1", lab.nodes[0].address),
        ("outside", lab.outside[0].address),
    ] {
        for (target, source) in [
            (format!("{}:8080", two.address.v4), IpAddr::V4(sees.v4)),
            (format!("[{}]:8080", two.address.v6), IpAddr::V6(sees.v6)),
        ] {
            for protocol in [&[][..], &["--udp"][..]] {
                let args: Vec<&str> = [target.as_str()].iter().chain(protocol).copied().collect();
                let report = connect(&lab, from, &args);
                assert_eq!(
                    report.answers.get("web-2"),
                    Some(&1),
                    "{from} -> {target} {protocol:?}: {report:?}"
                );
                assert_eq!(
                    report.sources.keys().collect::<Vec<_>>(),
                    [&source],
                    "{from} -> {target}"
                );
            }
        }
    }
    let report = connect(&lab, "web-1", &["172.18.0.2:80"]);
    assert_eq!(report.failures[0].kind, FailureKind::Refused);
    let report = connect(&lab, "web-1", &["172.18.1.2:80"]);
    assert_eq!(report.failures[0].kind, FailureKind::Refused);
    lab.remove_pod("web-2");
    let report = connect(&lab, "web-1", &["10.244.2.2:8080", "--timeout-ms", "300"]);
    assert_ne!(report.failures.len(), 0);
}

#[test]
fn a_process_sees_its_pod() {
    let lab = Lab::builder().nodes(1).outside(0).build().unwrap();
    web(&lab, "web-1", "node-1");
    let place = lab.place("default/web-1").unwrap();
    assert_eq!(place.output("hostname", [""; 0]).unwrap().trim(), "web-1");
    let resolv = place.output("cat", ["/etc/resolv.conf"]).unwrap();
    assert!(
        resolv.contains("nameserver 10.96.0.10") && resolv.contains("search default.svc.cluster.local"),
        "{resolv}"
    );
    let group = place.output("cat", ["/proc/self/cgroup"]).unwrap();
    assert!(group.contains(&format!("/{}/node-1", lab.id())), "{group}");
    let body = lab
        .place("node-1")
        .unwrap()
        .output("curl", ["-s", "http://10.244.1.2:8080/x"])
        .unwrap();
    assert!(
        body.starts_with("CLIENT VALUES:\nclient_address=10.244.1.1\ncommand=GET\n"),
        "{body}"
    );
}

#[test]
fn nothing_is_left_of_a_lab_after_a_panic() {
    let id = std::panic::catch_unwind(|| {
        let lab = Lab::builder().nodes(1).outside(1).build().unwrap();
        web(&lab, "web-1", "node-1");
        std::panic::panic_any(lab.id().to_owned());
    })
    .unwrap_err()
    .downcast::<String>()
    .unwrap();
    assert_eq!(netns::list(&format!("{id}-")), Vec::<String>::new());
    assert!(!cleanup::scratch(&id).exists());
    assert!(!cgroup::mount_point().unwrap().join(Path::new(&*id)).exists());
}
