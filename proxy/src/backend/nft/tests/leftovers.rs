//! Removing what kube-proxy left, in a kernel that holds other people's rules too.

use super::super::leftovers::remove_kube_proxy;
use super::namespace::{in_namespace, run};

#[test]
fn kube_proxys_rules_go_and_everybody_elses_stay() {
    in_namespace(|| {
        assert_eq!(remove_kube_proxy().unwrap(), Vec::<String>::new());
        run(
            "nft",
            &["add table ip kube-proxy; add chain ip kube-proxy services; add table ip other"],
        );
        let rules = "add table ip nat; add chain ip nat PREROUTING { type nat hook prerouting priority -100; }; \
            add chain ip nat KUBE-SERVICES; add chain ip nat KUBE-SVC-X; add chain ip nat KUBE-SEP-Y; \
            add chain ip nat KUBE-FIREWALL; add chain ip nat MINE; \
            add rule ip nat PREROUTING ip daddr 192.0.2.9 accept; add rule ip nat PREROUTING jump KUBE-SERVICES; \
            add rule ip nat PREROUTING jump KUBE-FIREWALL; add rule ip nat PREROUTING jump MINE; \
            add rule ip nat KUBE-SERVICES ip daddr 10.96.0.1 goto KUBE-SVC-X; add rule ip nat KUBE-SVC-X jump KUBE-SEP-Y; \
            add rule ip nat KUBE-SEP-Y dnat to 10.244.0.1";
        run("nft", &[rules]);
        let removed = remove_kube_proxy().unwrap();
        assert_eq!(
            removed,
            ["table ip kube-proxy", "3 chains of table ip nat, and 1 jumps to them"]
        );
        let left = run("nft", &["list", "ruleset"]);
        for stays in ["table ip other", "192.0.2.9 accept", "jump KUBE-FIREWALL", "jump MINE"] {
            assert!(left.contains(stays), "{stays}: {left}");
        }
        for gone in ["kube-proxy", "KUBE-SERVICES", "KUBE-SVC", "KUBE-SEP"] {
            assert!(!left.contains(gone), "{gone}: {left}");
        }
        assert_eq!(remove_kube_proxy().unwrap(), Vec::<String>::new());
    });
}
