//! Several daemons, each with a runtime of its own.

use std::io;
use std::os::unix::net;
use std::time::Duration;

use super::*;

/// Answers turns as the sync loop does; yields how often it had to stand by and to go on.
async fn next(turns: &mut Turns) -> &'static str {
    match turns.recv().await {
        Some(Turn::StandBy(pid, done)) => {
            assert_eq!(pid, i32::try_from(std::process::id()).ok());
            done.send(()).expect("somebody waits");
            "stand by"
        }
        Some(Turn::GoOn) => "go on",
        None => "end",
    }
}

fn name(test: &str) -> String {
    format!("test {test} {}", std::process::id())
}

/// A process: a runtime of its own, which takes its tasks and sockets with it.
struct Daemon {
    runtime: tokio::runtime::Runtime,
    turns: Turns,
}

impl Daemon {
    fn start(name: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let (mut lease, turns) = Lease::new(Some(name.to_owned()));
        runtime.block_on(async { lease.take().await });
        Self { runtime, turns }
    }

    fn turn(&mut self) -> &'static str {
        self.runtime.block_on(next(&mut self.turns))
    }
}

/// Starts a daemon while an older one has the lease.
fn start_over(older: &mut Daemon, name: &str) -> Daemon {
    let name = name.to_owned();
    let newer = std::thread::spawn(move || Daemon::start(&name));
    assert_eq!(older.turn(), "stand by");
    newer.join().expect("a daemon")
}

#[test]
fn the_newest_has_it_and_those_before_get_it_back() {
    let name = name("queue");
    let mut first = Daemon::start(&name);
    let mut second = start_over(&mut first, &name);
    let third = start_over(&mut second, &name);
    // The first one waits for the second, which ends while the third programs: it goes on waiting.
    drop(second);
    std::thread::sleep(Duration::from_millis(100));
    assert!(first.turns.try_recv().is_err());
    drop(third);
    assert_eq!(first.turn(), "go on");
    let mut fourth = start_over(&mut first, &name);
    drop(first);
    assert!(fourth.turns.try_recv().is_err());
    let fifth = start_over(&mut fourth, &name);
    drop(fifth);
    assert_eq!(fourth.turn(), "go on");
}

#[test]
fn whoever_says_nothing_sensible_gets_nothing() {
    let name = name("manners");
    let mut holder = Daemon::start(&name);
    let mut strangers: Vec<net::UnixStream> = (0..3)
        .map(|_| net::UnixStream::connect_addr(&socket::address(&name).expect("a name")).expect("connected"))
        .collect();
    io::Write::write_all(&mut strangers[0], b"x").expect("written");
    drop(strangers.remove(1));
    let newer = start_over(&mut holder, &name);
    drop(newer);
    assert_eq!(holder.turn(), "go on");
}
