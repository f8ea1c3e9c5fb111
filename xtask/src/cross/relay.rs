//! A real relay through the Windows program: a client and an echo server on this machine, and between them
//! `portolan-proxy.exe` under Wine, which learns from a folder of manifests that they belong together.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Long enough for Wine to make its prefix on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
const INTERVAL: Duration = Duration::from_millis(200);
/// More than all buffers on the way hold.
const SENT: usize = 16 << 20;

/// Starts `program` (Wine and the path of the proxy) with manifests in `folder`, sends bytes through the cluster IP's
/// stand-in, closes that direction, and wants them all back.
pub fn check(mut program: Command, folder: &Path) -> Result<()> {
    let echo = echo_server()?;
    let manifests = folder.join("manifests");
    fs::create_dir_all(&manifests).with_context(|| format!("cannot make {}", manifests.display()))?;
    let file = manifests.join("echo.yaml");
    fs::write(&file, objects(echo.port(), free_port()?)).with_context(|| format!("cannot write {}", file.display()))?;
    let log_file = folder.join("portolan-proxy.log");
    let log = fs::File::create(&log_file).with_context(|| format!("cannot write {}", log_file.display()))?;
    let status = SocketAddr::from(([127, 0, 0, 1], free_port()?));
    let healthz = SocketAddr::from(([127, 0, 0, 1], free_port()?));
    program
        .current_dir(folder)
        .args(["run", "--backend", "userspace", "--node-name", "here"])
        .args(["--manifests", "manifests"])
        .arg(format!("--metrics-bind-address={status}"))
        .arg(format!("--healthz-bind-address={healthz}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    let child = program.spawn().context("cannot start wine")?;
    let mut proxy = Running(child);
    let told = || format!("portolan-proxy.exe under Wine (its log: {})", log_file.display());
    let frontend = listening_on(status, &mut proxy).with_context(told)?;
    relay(frontend).with_context(told)
}

/// Killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn echo_server() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen on loopback")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || io::copy(&mut &stream, &mut &stream));
        }
    });
    Ok(address)
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no free port on loopback")?;
    Ok(listener.local_addr()?.port())
}

/// A Service without a selector and the EndpointSlice that belongs to it.
fn objects(endpoint: u16, port: u16) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: echo, namespace: default}}
spec:
  clusterIP: 10.96.0.10
  ports:
  - {{port: {port}, protocol: TCP}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: echo-1, namespace: default, labels: {{kubernetes.io/service-name: echo}}}}
addressType: IPv4
ports:
- {{port: {endpoint}, protocol: TCP}}
endpoints:
- addresses: [127.0.0.1]
"
    )
}

/// Where the cluster IP is served, as `/status` tells a user.
fn listening_on(status: SocketAddr, proxy: &mut Running) -> Result<SocketAddr> {
    let mut last = String::new();
    for _ in 0..PATIENCE.as_millis() / INTERVAL.as_millis() {
        if let Some(ended) = proxy.0.try_wait()? {
            bail!("it ended with {ended}");
        }
        match programmed(status) {
            Ok(Some(place)) => match place
                .strip_prefix("listening on ")
                .and_then(|rest| rest.split(' ').next())
            {
                Some(address) => return address.parse().with_context(|| format!("no address in {place:?}")),
                None => last = place,
            },
            Ok(None) => last = "its status has no line for default/echo".to_owned(),
            Err(error) => last = format!("no status: {error:#}"),
        }
        thread::sleep(INTERVAL);
    }
    bail!("it does not serve the Service: {last}")
}

fn programmed(status: SocketAddr) -> Result<Option<String>> {
    let mut stream = TcpStream::connect(status)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /status HTTP/1.0\r\nHost: {status}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    let body: Value = serde_json::from_str(body).context("the status is not JSON")?;
    let lines = body["programmed"]
        .as_array()
        .context("the status has no list of frontends")?;
    let line = lines
        .iter()
        .find(|line| line[0].as_str().is_some_and(|key| key.starts_with("default/echo")));
    Ok(line.and_then(|line| line[1].as_str()).map(str::to_owned))
}

fn relay(frontend: SocketAddr) -> Result<()> {
    let client = TcpStream::connect(frontend).with_context(|| format!("cannot connect to {frontend}"))?;
    client.set_read_timeout(Some(PATIENCE))?;
    let sent: Vec<u8> = (0..=255).cycle().take(SENT).collect();
    let mut received = Vec::new();
    thread::scope(|scope| -> Result<()> {
        let sender = scope.spawn(|| {
            (&client)
                .write_all(&sent)
                .and_then(|()| client.shutdown(Shutdown::Write))
        });
        (&client)
            .read_to_end(&mut received)
            .context("reading what comes back")?;
        match sender.join() {
            Ok(done) => done.context("sending"),
            Err(_) => bail!("the sender panicked"),
        }
    })?;
    ensure!(
        received == sent,
        "{} of {SENT} bytes came back, or others",
        received.len()
    );
    println!("cross: {SENT} bytes and the end of the stream went both ways through {frontend}");
    Ok(())
}
