//! Who is served, who is refused, who hears nothing.

use std::sync::Arc;

use portolan_plan::Pods;

use super::*;
use crate::backend::userspace::target::{Sources, Target};

#[test]
fn without_endpoints_connections_are_refused_until_there_is_one() {
    let frontend = own_address();
    let mut rig = Rig::new();
    rig.apply(&[&plan("web", frontend, &[])]);
    check_refused(frontend);
    assert_eq!(
        rig.status("default/web"),
        "not listening: no endpoint, connections are refused"
    );
    let a = echo('a');
    rig.apply(&[&plan("web", frontend, &[a])]);
    assert_eq!(name(&mut connect(frontend)), 'a');
    rig.apply(&[&plan("web", frontend, &[])]);
    check_refused(frontend);
}

#[test]
fn where_everyone_is_dropped_clients_wait_and_are_served_if_that_changes() {
    let frontend = own_address();
    let mut rig = Rig::new();
    let a = echo('a');
    let mut web = plan("web", frontend, &[a]);
    web.ports[0].frontends[0].routes = Routes::same(Verdict::Drop);
    rig.apply(&[&web]);
    let mut client = connect(frontend);
    check_silent(&mut client);
    rig.apply(&[&plan("web", frontend, &[a])]);
    assert_eq!(name(&mut client), 'a');
}

#[test]
fn where_some_are_served_the_others_hear_nothing_or_get_a_reset() {
    let frontend = own_address();
    let mut rig = Rig::new();
    let mut web = plan("web", frontend, &[echo('a')]);
    web.ports[0].frontends[0].routes.node = Verdict::Drop;
    rig.apply(&[&web]);
    check_silent(&mut connect(frontend));
    web.ports[0].frontends[0].routes.node = Verdict::Reject;
    rig.apply(&[&web]);
    check_reset(frontend);
    rig.wait_for("refused or dropped", "2");
}

#[test]
fn source_ranges_let_in_nobody_else() {
    let frontend = own_address();
    let mut rig = Rig::new();
    let mut web = plan("web", frontend, &[echo('a')]);
    web.ports[0].frontends[0].source_ranges = Some(Arc::new(["127.0.0.16/28".parse::<IpNet>().unwrap()]));
    rig.apply(&[&web]);
    assert_eq!(name(&mut connect_from([127, 0, 0, 17], frontend).unwrap()), 'a');
    check_silent(&mut connect_from([127, 0, 0, 15], frontend).unwrap());
}

#[test]
fn a_source_is_the_node_a_pod_or_outside() {
    let forward_local = Verdict::Forward {
        set: EndpointSet::Local,
        masquerade: false,
    };
    let target = Target {
        service: ServiceName::new("default", "web"),
        port_name: "".into(),
        routes: Routes {
            pod: FORWARD,
            node: forward_local,
            outside: Verdict::Drop,
        },
        source_ranges: None,
        cluster: Arc::new([]),
        local: Arc::new([]),
        affinity: None,
    };
    let sources = Sources::default();
    let check = |client: &str, expect: Verdict| {
        assert_eq!(target.verdict(client.parse().unwrap(), &sources), expect, "{client}");
    };
    check("10.244.1.7", Verdict::Drop);
    let pods = vec!["10.244.0.0/16".parse().unwrap(), "fd00:244::/56".parse().unwrap()];
    sources.update(&NodePlan {
        pods: Pods::Cidrs(pods),
        ..NodePlan::default()
    });
    check("10.244.1.7", FORWARD);
    check("fd00:244::7", FORWARD);
    check("127.0.0.1", forward_local);
    check("::1", forward_local);
    check("198.51.100.7", Verdict::Drop);
    sources.update(&NodePlan {
        pods: Pods::Interface("cni0".to_owned()),
        ..NodePlan::default()
    });
    check("10.244.1.7", Verdict::Drop);
}
