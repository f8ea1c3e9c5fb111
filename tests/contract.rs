//! The DNS contract against the real CoreDNS and against ours, both on one API server: so that what the contract's tables
//! expect is seen, not believed.
//!
//! It runs the tests of `dns/tests/wire/contract.rs` inside the lab, once for each server. It needs that test program (`cargo
//! test -p portolan-dns --test wire --no-run` builds it), root, and the programs of `cargo xtask kube-assets`.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use portolan_lab::binaries;
use portolan_lab::cleanup;
use portolan_lab::control_plane::ControlPlane;
use portolan_lab::daemon::{Daemon, DaemonSpec};
use portolan_lab::lab::Lab;
use portolan_lab::probe::dns::{QueryOptions, query};
use portolan_lab::process::{Place, wait_until};

/// The cluster of the contract.
const CLUSTER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../dns/tests/wire/cluster.yaml");

/// How long a server that is ready may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    cleanup::on_signals();
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("contract: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let wire = wire()?;
    cleanup::sweep(false);
    let lab = Lab::builder().nodes(1).outside(0).control_plane(true).build()?;
    let plane = ControlPlane::start(&lab)?;
    let host = lab.control_plane().context("the lab has no control plane")?;
    plane.kubectl(host, &["apply", "--server-side", "-f", CLUSTER])?;
    let mut passed = true;
    for (name, spec) in [
        ("coredns", core_dns(&lab, &plane)?),
        ("portolan", portolan(&lab, &plane)?),
    ] {
        let place = spec.place.clone();
        let daemon = Daemon::start(spec)?;
        daemon.wait_ready()?;
        wait_for_answers(&place, name)?;
        println!("\n=== the contract, answered by {name}");
        let status = place
            .command(&wire)
            .args(["contract::", "--test-threads", "2"])
            .env("DNS_SUBJECT", format!("{name}={}:53", Ipv4Addr::LOCALHOST))
            .stdin(Stdio::null())
            .stdout(Stdio::inherit())
            .stderr(Stdio::inherit())
            .status()
            .with_context(|| format!("cannot run {}", wire.display()))?;
        passed &= status.success();
        daemon.terminate()?;
    }
    Ok(passed)
}

/// Waits until the server answers over UDP and over TCP: CoreDNS says that it is ready before it listens.
fn wait_for_answers(place: &Place, name: &str) -> Result<()> {
    for tcp in [false, true] {
        let question = QueryOptions {
            server: (Ipv4Addr::LOCALHOST, 53).into(),
            name: "kubernetes.default.svc.cluster.local".to_owned(),
            kind: "A".to_owned(),
            tcp,
            timeout_ms: 1000,
        };
        let answered = wait_until(PATIENCE, || {
            let question = question.clone();
            place.netns.run(move || query(&question)).is_ok()
        });
        ensure!(answered, "{name} is ready but answers nothing (tcp: {tcp})");
    }
    Ok(())
}

/// The test program with the contract: the youngest beside this one.
fn wire() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let dir = exe.parent().context("this program lies nowhere")?;
    let mut found: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(dir)?.flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("wire-") && path.extension().is_none() {
            found.push((entry.metadata()?.modified()?, path));
        }
    }
    found.sort();
    let (_, youngest) = found.pop().with_context(|| {
        format!(
            "there is no wire-* in {}: cargo test -p portolan-dns --test wire --no-run",
            dir.display()
        )
    })?;
    ensure!(runs(&youngest), "{} does not run", youngest.display());
    Ok(youngest)
}

fn runs(program: &Path) -> bool {
    let list = Command::new(program).args(["contract::", "--list"]).output();
    list.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("contract::"))
}

fn core_dns(lab: &Lab, plane: &ControlPlane) -> Result<DaemonSpec> {
    let corefile = format!(
        ".:53 {{\n  bind 127.0.0.1\n  errors\n  ready 127.0.0.1:8181\n  kubernetes cluster.local in-addr.arpa ip6.arpa \
         {{\n    kubeconfig {}\n    pods insecure\n    fallthrough in-addr.arpa ip6.arpa\n    ttl 5\n  }}\n  loadbalance\n}}\n",
        plane.kubeconfig("portolan-dns").display()
    );
    let file = lab.scratch().join("Corefile");
    std::fs::write(&file, corefile)?;
    let args = vec!["-conf".into(), file.into()];
    spec(lab, "coredns", binaries::peer("coredns")?, args)
}

fn portolan(lab: &Lab, plane: &ControlPlane) -> Result<DaemonSpec> {
    // A file without a server: what is not the cluster's is refused for want of one, and the tables see that.
    let nobody = lab.scratch().join("no-upstream");
    std::fs::write(&nobody, "# nobody\n")?;
    let mut args: Vec<std::ffi::OsString> = vec!["run".into(), "--kubeconfig".into()];
    args.push(plane.kubeconfig("portolan-dns").into());
    let flags = "--listen 127.0.0.1:53 --ttl 5 --pods insecure --lameduck 0";
    args.extend(flags.split(' ').map(Into::into));
    args.extend(["--upstream".into(), nobody.into()]);
    spec(lab, "portolan", binaries::find("PORTOLAN_DNS", "portolan-dns")?, args)
}

fn spec(lab: &Lab, name: &str, program: PathBuf, args: Vec<std::ffi::OsString>) -> Result<DaemonSpec> {
    let Some(node) = lab.nodes().first() else {
        bail!("the lab has no node")
    };
    Ok(DaemonSpec {
        name: name.to_owned(),
        place: node.place.clone(),
        program,
        args,
        ready_url: "http://127.0.0.1:8181/ready".to_owned(),
        log: lab.scratch().join(format!("{name}.log")),
    })
}
