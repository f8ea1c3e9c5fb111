//! SIGTERM ends the daemon, whatever it is doing.
#![cfg(unix)]

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// A daemon that does not outlive its test, and what it says.
struct Daemon {
    process: Child,
    log: File,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended, as it should.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Daemon {
    /// Starts one that serves no HTTP and programs nothing but itself.
    fn start(folder: &Path, source: [&str; 2]) -> Self {
        let path = folder.join("log");
        let log = File::create(&path).expect("a log");
        let process = Command::new(env!("CARGO_BIN_EXE_portolan-proxy"))
            .args(["run", "--backend", "userspace", "--hostname-override", "node-1"])
            .args([
                "--healthz-bind-address",
                "127.0.0.1:0",
                "--metrics-bind-address",
                "127.0.0.1:0",
            ])
            .args(source)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("a process");
        let log = File::open(&path).expect("a log");
        Self { process, log }
    }

    /// Waits until it has said `words`.
    fn wait_for(&mut self, words: &str) {
        let mut text = String::new();
        for _ in 0..6000 {
            self.log.read_to_string(&mut text).expect("text");
            if text.contains(words) {
                return;
            }
            assert_eq!(self.process.try_wait().expect("a process"), None, "it ended: {text}");
            sleep(Duration::from_millis(10));
        }
        panic!("it never said {words:?}: {text}");
    }

    /// Sends SIGTERM and waits for the end.
    fn terminate(&mut self) -> ExitStatus {
        let id = i32::try_from(self.process.id()).expect("a process id");
        kill_process(Pid::from_raw(id).expect("a process id"), Signal::TERM).expect("a signal");
        for _ in 0..6000 {
            if let Some(status) = self.process.try_wait().expect("a process") {
                return status;
            }
            sleep(Duration::from_millis(10));
        }
        panic!("SIGTERM did not end it");
    }
}

#[test]
fn a_daemon_without_a_configuration_file_ends() {
    let folder = tempfile::tempdir().expect("a folder");
    let manifests = folder.path().to_str().expect("a path");
    let mut daemon = Daemon::start(folder.path(), ["--manifests", manifests]);
    daemon.wait_for("everything is programmed");
    assert!(daemon.terminate().success());
}

#[test]
fn a_daemon_that_waits_for_its_api_server_ends() {
    let folder = tempfile::tempdir().expect("a folder");
    let kubeconfig = folder.path().join("kubeconfig");
    let text = "apiVersion: v1\nkind: Config\ncurrent-context: a\n\
        clusters: [{name: a, cluster: {server: 'http://127.0.0.1:9'}}]\n\
        contexts: [{name: a, context: {cluster: a, user: a}}]\nusers: [{name: a, user: {}}]\n";
    std::fs::write(&kubeconfig, text).expect("a file");
    let kubeconfig = kubeconfig.to_str().expect("a path");
    let mut daemon = Daemon::start(folder.path(), ["--kubeconfig", kubeconfig]);
    daemon.wait_for("portolan-proxy starts");
    assert!(daemon.terminate().success());
}
