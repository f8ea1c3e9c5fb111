//! kubeadm's ConfigMap, every field, every mistake.

use portolan_plan::{NodePortAddresses, PodDetection};

use super::file::parse;
use super::settings::Mode;
use super::*;

/// `config.conf` of the ConfigMap kube-system/kube-proxy as kubeadm 1.36 writes it.
const KUBEADM: &str = r#"apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 0
  contentType: ""
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: ""
  interfaceNamePrefix: ""
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: ""
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
kind: KubeProxyConfiguration
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: "0"
    text:
      infoBufferSize: "0"
  verbosity: 0
metricsBindAddress: ""
mode: ""
nftables:
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: ""
  rootHnsEndpointName: ""
  sourceVip: ""
"#;

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

fn settings(text: &str) -> anyhow::Result<Settings> {
    let mut loaded = parse(text).map_err(|(place, cause)| anyhow::anyhow!("{place}{cause}"))?;
    loaded.file = Some("f".into());
    Settings::new(loaded, "n1", true)
}

#[test]
fn what_kubeadm_writes_works_as_it_is() {
    let settings = settings(KUBEADM).expect("settings");
    let mut expect = KubeProxyConfiguration {
        cluster_cidr: "10.244.0.0/16".into(),
        mode: "iptables".into(),
        ..KubeProxyConfiguration::default()
    };
    expect.client_connection.kubeconfig = "/var/lib/kube-proxy/kubeconfig.conf".into();
    let mut found = settings.config.clone();
    found.logging = Logging::default();
    assert_eq!(found, expect);
    assert_eq!(
        settings.options.pod_detection,
        PodDetection::ClusterCidr(vec!["10.244.0.0/16".parse().expect("a range")])
    );
    assert!(matches!(settings.options.node_port_addresses, NodePortAddresses::Cidrs(cidrs) if cidrs.len() == 2));
    assert_eq!(settings.healthz, Some("0.0.0.0:10256".parse().expect("an address")));
    assert_eq!(settings.metrics, Some("127.0.0.1:10249".parse().expect("an address")));
    assert_eq!(
        settings.notes.len(),
        2,
        "only the mode and its node ports are news: {:?}",
        settings.notes
    );
}

#[test]
fn every_field_is_known_and_the_ones_without_meaning_are_named_once() {
    let every = serde_json::json!({
        "apiVersion": API_VERSION, "kind": KIND, "mode": "nftables",
        "featureGates": {"Some": true},
        "clientConnection": {"kubeconfig": "/k", "acceptContentTypes": "application/json", "contentType": "application/json", "qps": 50, "burst": 100},
        "logging": {"format": "json", "flushFrequency": "1s", "verbosity": 4, "vmodule": [{"filePattern": "x", "verbosity": 2}]},
        "hostnameOverride": "other", "bindAddress": "192.0.2.1", "healthzBindAddress": "192.0.2.1", "metricsBindAddress": "[::]:9000",
        "bindAddressHardFail": true, "enableProfiling": true, "showHiddenMetricsForVersion": "1.35",
        "iptables": {"masqueradeBit": 3, "masqueradeAll": false, "localhostNodePorts": false, "syncPeriod": "1m", "minSyncPeriod": "2s"},
        "nftables": {"masqueradeBit": 0, "masqueradeAll": true, "syncPeriod": "10s", "minSyncPeriod": "2s"},
        "ipvs": {"syncPeriod": "1m", "minSyncPeriod": "1s", "scheduler": "rr", "excludeCIDRs": ["10.0.0.0/8"], "strictARP": true, "tcpTimeout": "1s", "tcpFinTimeout": "1s", "udpTimeout": "1s"},
        "winkernel": {"networkName": "n", "sourceVip": "v", "enableDSR": true, "rootHnsEndpointName": "r", "forwardHealthCheckVip": true},
        "detectLocalMode": "InterfaceNamePrefix", "detectLocal": {"bridgeInterface": "br0", "interfaceNamePrefix": "veth"},
        "clusterCIDR": "10.244.0.0/16,fd00::/48", "nodePortAddresses": ["localhost", "192.0.2.0/24"], "oomScoreAdj": 0,
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "1m", "tcpBeLiberal": true, "udpTimeout": "30s", "udpStreamTimeout": "2m"},
        "configSyncPeriod": "1m", "portRange": "1-2", "windowsRunAsService": true,
    });
    let settings = settings(&serde_json::to_string_pretty(&every).expect("JSON")).expect("settings");
    assert_eq!(settings.notes.len(), 1, "{:?}", settings.notes);
    let note = &settings.notes[0];
    for idle in [
        "featureGates.Some",
        "clientConnection.qps",
        "ipvs.scheduler",
        "winkernel.enableDSR",
        "portRange",
        "logging.vmodule",
    ] {
        assert!(note.contains(idle), "{idle}: {note}");
    }
    for used in [
        "nftables.masqueradeAll",
        "conntrack.min",
        "clusterCIDR",
        "oomScoreAdj",
        "kubeconfig",
        "verbosity",
    ] {
        assert!(!note.contains(used), "{used}: {note}");
    }
    assert_eq!(
        (settings.mode, settings.masquerade_bit, settings.oom_score_adj),
        (Mode::Nftables, 0, 0)
    );
    assert!(
        settings.options.masquerade_all && !settings.options.localhost_node_ports && settings.bind_address_hard_fail
    );
    assert_eq!(settings.options.node_ip, Some("192.0.2.1".parse().expect("an address")));
    assert_eq!(
        settings.options.pod_detection,
        PodDetection::InterfaceNamePrefix("veth".into())
    );
    assert_eq!(settings.healthz, Some("192.0.2.1:10256".parse().expect("an address")));
    assert_eq!(settings.metrics, Some("[::]:9000".parse().expect("an address")));
    assert_eq!(settings.patience.as_secs(), 20);
    let conntrack = settings.conntrack;
    assert_eq!((conntrack.max_per_core, conntrack.min), (0, 0));
    assert!(conntrack.tcp_established_timeout.is_zero());
    assert_eq!(conntrack.udp_stream_timeout, Period::seconds(120));
}

#[test]
fn mistakes_name_line_and_field() {
    let check = |rest: &str, expect: &str| {
        let error = settings(&format!("{HEAD}{rest}")).expect_err(rest).to_string();
        assert!(error.contains(expect), "{rest}: {error}");
    };
    check("conntrack:\n  min: many\n", "line 4: conntrack.min: ");
    check(
        "iptables: {syncPeriod: soon}\nmode: nftables\n",
        "line 3: iptables.syncPeriod: \"soon\" is not a duration",
    );
    check("mode: userspace2\n", "mode: \"userspace2\" is none of");
    check("clusterCIDR: 10.0.0.0/33\n", "clusterCIDR: ");
    check("nodePortAddresses: [primary, 10.0.0.0/8]\n", "`primary` stands alone");
    check(
        "detectLocalMode: BridgeInterface\n",
        "needs detectLocal.bridgeInterface",
    );
    check("oomScoreAdj: 1001\n", "oomScoreAdj: 1001");
    check("nftables: {masqueradeBit: 32}\nmode: nftables\n", "masqueradeBit: 32");
    check(
        "healthzBindAddress: here\n",
        "healthzBindAddress: \"here\" is not ADDR:PORT",
    );
    check("bindAddress: nowhere\n", "bindAddress: ");
    check("conntrack: [1\n", "line ");
    let head = |text: &str| settings(text).expect_err(text).to_string();
    assert!(
        head("apiVersion: v1\nkind: ConfigMap\n")
            .contains("line 1: apiVersion: \"v1\" is not kubeproxy.config.k8s.io/v1alpha1")
    );
    assert!(head("mode: nftables\n").contains("apiVersion is missing"));
    assert!(head("").contains("is missing"));
    assert!(head("- 1\n").contains("is missing"));
}

#[test]
fn unknown_fields_are_named_with_their_line_and_change_nothing() {
    let settings = settings(&format!(
        "{HEAD}mode: nftables\nconntrack:\n  maxPerCor: 1\n  min: 5\nnodePort: x\n"
    ))
    .expect("settings");
    assert_eq!(
        settings.notes,
        ["f: these fields are unknown and change nothing: line 5: conntrack.maxPerCor, line 7: nodePort"]
    );
    assert_eq!(
        settings.conntrack,
        Conntrack {
            min: 5,
            ..Conntrack::default()
        }
    );
}

#[test]
fn what_is_written_is_read_back() {
    let text = serde_saphyr::to_string(&KubeProxyConfiguration::default()).expect("YAML");
    let loaded = parse(&text).expect("a configuration");
    assert_eq!(
        (loaded.config, loaded.unknown),
        (KubeProxyConfiguration::default(), vec![])
    );
}

proptest::proptest! {
    #[test]
    fn nothing_in_a_file_makes_it_panic(text in "(mode|conntrack|iptables|- |\\{|\\}|\\[|: |\n|  |[a-z0-9\"']|&a|\\*a){0,40}") {
        let _ = settings(&format!("{HEAD}{text}"));
    }
}
