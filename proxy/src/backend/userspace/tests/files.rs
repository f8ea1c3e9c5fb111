//! Open files: none is lost, and running out of them is survived. Each test counts the files of a whole process, so it
//! runs in one of its own.
#![cfg(target_os = "linux")]

use std::env;
use std::fs::{self, File};
use std::process::Command;

use rustix::process::{Resource, Rlimit, setrlimit};

use super::*;

/// Set in the process that is the test's own.
const ALONE: &str = "PORTOLAN_TEST_ALONE";

/// Runs this test alone in a new process; true in that process.
#[track_caller]
fn alone(test: &str) -> bool {
    if env::var_os(ALONE).is_some() {
        return true;
    }
    let path = module_path!().split_once("::").unwrap().1;
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", &format!("{path}::{test}"), "--nocapture"]);
    let output = command.env(ALONE, "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{output:?}");
    false
}

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn ten_thousand_connections_leave_no_file_open() {
    const WAVE: usize = 500;
    if !alone("ten_thousand_connections_leave_no_file_open") {
        return;
    }
    let frontend = own_address();
    let mut rig = Rig::new();
    let (_socket, gone) = dead();
    rig.apply(&[&plan("web", frontend, &[echo('a'), gone])]);
    name(&mut connect(frontend));
    rig.wait_for("tcp connections open", "0");
    let before = open_files();
    let mut most = 0;
    for wave in 0..10_000 / WAVE {
        let mut clients: Vec<TcpStream> = (0..WAVE).map(|_| connect(frontend)).collect();
        for (index, client) in clients.iter_mut().enumerate() {
            assert_eq!(name(client), 'a');
            match (wave + index) % 3 {
                0 => check_echo(client),
                1 => client.shutdown(std::net::Shutdown::Write).unwrap(),
                _ => {}
            }
        }
        most = most.max(open_files());
        // Half of them leave without saying goodbye.
        for client in clients.into_iter().step_by(2) {
            Socket::from(client).set_linger(Some(Duration::ZERO)).unwrap();
        }
    }
    rig.wait_for("tcp connections open", "0");
    assert!(most > before + 2 * WAVE, "{most}: the waves were really open at once");
    // The server's own threads may need a moment more.
    for _ in 0..1000 {
        if open_files() <= before {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(open_files(), before);
    assert_eq!(rig.status("tcp connections relayed"), "10001");
}

#[test]
fn without_files_accepting_pauses_and_goes_on_later() {
    if !alone("without_files_accepting_pauses_and_goes_on_later") {
        return;
    }
    let limit = Rlimit {
        current: Some(100),
        maximum: Some(100),
    };
    setrlimit(Resource::Nofile, limit).unwrap();
    let frontend = own_address();
    let mut rig = Rig::new();
    assert_eq!(rig.status("open files limit"), "100");
    rig.apply(&[&plan("web", frontend, &[echo('a')])]);
    let mut files: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    assert!(files.len() > 10);
    files.pop();
    let mut client = connect(frontend);
    check_silent(&mut client);
    drop(files);
    assert_eq!(name(&mut client), 'a');
    let failed: u32 = rig.status("tcp accepts that failed").parse().unwrap();
    assert!((1..100).contains(&failed), "{failed} attempts");
}
