//! From evidence to names, and evidence from the kernel of this machine (root).

use super::*;

fn check(evidence: Evidence, wanted: &[&str]) {
    let found: Vec<String> = evidence.rivals().iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), wanted.len(), "{found:?}");
    for (found, wanted) in found.iter().zip(wanted) {
        assert!(found.contains(wanted), "{found:?} lacks {wanted:?}");
    }
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn who_is_named_for_what() {
    let none = Evidence::default;
    check(none(), &[]);
    let nft_chains = texts(&[
        "ip portolan services",
        "ip nat POSTROUTING",
        "inet calico filter-FORWARD",
        "ip nat cali-PREROUTING",
        "ip filter KUBE-FIREWALL",
    ]);
    let interfaces = texts(&["lo", "eth0", "cali12345", "cni0"]);
    let programs = texts(&["sd_devices", "connect4"]);
    let ip_vs = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n".to_owned();
    check(
        Evidence {
            nft_chains,
            interfaces,
            programs,
            ip_vs: ip_vs.clone(),
            ..none()
        },
        &[],
    );
    check(
        Evidence {
            nft_chains: texts(&["ip kube-proxy services", "ip kube-proxy x", "ip6 kube-proxy services"]),
            ..none()
        },
        &[
            "kube-proxy in nftables mode translates Services on this node, too (nftables tables ip kube-proxy, ip6 kube-proxy)",
        ],
    );
    check(
        Evidence {
            nft_chains: texts(&["ip nat KUBE-SERVICES", "ip filter KUBE-SERVICES"]),
            legacy: vec!["iptables", "ip6tables"],
            ..none()
        },
        &["tables ip nat, ip filter)", "KUBE-SERVICES in iptables and ip6tables"],
    );
    check(
        Evidence {
            interfaces: texts(&["kube-ipvs0"]),
            ip_vs: ip_vs + "TCP  0A600001:0050 rr\n  -> 0AF40105:1F90 Masq 1 0 0\nUDP  0A60000A:0035 rr\n",
            ..none()
        },
        &["interface kube-ipvs0, 2 IPVS virtual servers"],
    );
    check(
        Evidence {
            programs: texts(&["cil_sock4_conne", "calico_connect_"]),
            interfaces: texts(&["cilium_host", "bpfin.cali"]),
            ..none()
        },
        &[
            "Cilium translates Services on this node, too (BPF program cil_sock4_conne)",
            "Calico's eBPF data plane",
        ],
    );
}

#[test]
fn chains_are_read_from_the_kernel() {
    std::thread::spawn(|| {
        // SAFETY: changes the network namespace of this thread only.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "these tests need root");
        let nft = |text: &str| {
            let status = std::process::Command::new("nft").arg(text).status().expect("nft");
            assert!(status.success(), "{text}");
        };
        let kube_proxy = || {
            find()
                .iter()
                .filter(|rival| rival.name.starts_with("kube-proxy"))
                .count()
        };
        assert_eq!(kube_proxy(), 0);
        nft("add table ip kube-proxy; add chain ip kube-proxy services");
        assert_eq!(kube_proxy(), 1);
        nft("add table ip6 nat; add chain ip6 nat KUBE-SERVICES");
        assert_eq!(kube_proxy(), 2);
    })
    .join()
    .expect("the namespace's thread");
}

/// Where the machine has iptables' older interface, a chain in it is seen.
#[test]
fn programs_and_tables_can_be_asked_for() {
    kernel::bpf_program_names().expect("names of BPF programs");
    let names = fs::read_to_string("/proc/self/net/ip_tables_names").unwrap_or_default();
    if names.lines().any(|name| name == "nat") {
        assert!(kernel::legacy_nat_has(false, b"PREROUTING\0").is_ok());
        assert!(!kernel::legacy_nat_has(false, b"NO-SUCH-CHAIN-ANYWHERE\0").expect("the table"));
    }
}
