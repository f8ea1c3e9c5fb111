//! scratch
use portolan_lab::{cleanup, cluster::Cluster, lab::Lab, subject::*};
use serde_json::json;
use std::time::Instant;
fn main() -> anyhow::Result<()> {
    cleanup::on_signals();
    let t = Instant::now();
    println!("swept {:?}", cleanup::sweep(true));
    let lab = Lab::builder().control_plane(true).build()?;
    println!("lab {:?}", t.elapsed());
    let cluster = Cluster::with_api_server(lab)?;
    println!("api {:?}", t.elapsed());
    let source = cluster.source();
    let d: Vec<_> = cluster
        .lab()
        .nodes()
        .iter()
        .map(|n| ProxySubject::KubeProxy.start(cluster.lab(), n, &source))
        .collect::<Result<_, _>>()?;
    for n in 1..=3 {
        cluster.apply(&json!({"apiVersion":"v1","kind":"Pod","metadata":{"name":format!("web-{n}"),"labels":{"app":"web"}},"spec":{"nodeName":format!("node-{n}"),"containers":[{"name":"a","image":"x","ports":[{"containerPort":8080}]}]}}))?;
    }
    cluster.apply(&json!({"apiVersion":"v1","kind":"Service","metadata":{"name":"web"},"spec":{"clusterIP":"10.96.0.80","selector":{"app":"web"},"ports":[{"port":80,"targetPort":8080}]}}))?;
    println!("applied {:?}", t.elapsed());
    for d in &d {
        d.wait_ready()?;
    }
    println!("proxies {:?}", t.elapsed());
    for _ in 0..20 {
        let r = cluster.lab().place("web-1")?.output(
            portolan_lab::probe::binary()?,
            ["connect", "10.96.0.80:80", "--count", "30"],
        )?;
        println!("{:?} {r}", t.elapsed());
        if r.contains("web-3") {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    if std::env::args().any(|a| a == "--keep") {
        std::mem::forget(d);
        std::mem::forget(cluster);
    }
    Ok(())
}
