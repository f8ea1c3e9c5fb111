//! Watches our tables for changes that others make.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use portolan_model::Family;
use tokio::sync::mpsc::Sender;
use tracing::{debug, warn};

use super::netlink::constants::*;
use super::netlink::dump::ask_generation;
use super::netlink::message::{Message, Messages};
use super::netlink::socket::Socket;
use super::schema::family_number;
use crate::backend::Disturbance;

/// After a report, changes are collected for this long before the next one.
const QUIET: Duration = Duration::from_millis(200);
/// Room for the news of a rather large change.
const BUFFER: usize = 8 << 20;

/// A thread that listens to the kernel's notifications.
#[derive(Debug)]
pub(crate) struct Monitor {
    /// The thread's socket, to wake it and to change what it hears.
    socket: Socket,
    disturbances: Sender<Disturbance>,
    stopped: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

struct Listener {
    socket: Socket,
    table: String,
    /// The port id of the socket that our own changes come from.
    own: u32,
    disturbances: Sender<Disturbance>,
    stopped: Arc<AtomicBool>,
}

// === impl Monitor ===

impl Monitor {
    /// Listens in the calling thread's network namespace. Changes by the socket with port id `own` are ours.
    pub(crate) fn start(table: &str, own: u32, disturbances: Sender<Disturbance>) -> io::Result<Self> {
        let socket = Socket::open()?;
        socket.grow(BUFFER)?;
        socket.join(NFNLGRP_NFTABLES)?;
        let stopped = Arc::new(AtomicBool::new(false));
        let mut monitor = Self {
            socket: socket.sender()?,
            disturbances: disturbances.clone(),
            stopped: stopped.clone(),
            thread: None,
        };
        let listener = Listener {
            socket,
            table: table.to_owned(),
            own,
            disturbances,
            stopped,
        };
        let thread = thread::Builder::new().name("nft-monitor".into());
        monitor.thread = Some(thread.spawn(move || listener.run())?);
        Ok(monitor)
    }

    /// Hears nothing until [`Monitor::resume`].
    pub(crate) fn pause(&self) -> io::Result<()> {
        self.socket.leave(NFNLGRP_NFTABLES)
    }

    /// Hears again.
    pub(crate) fn resume(&self) -> io::Result<()> {
        self.socket.join(NFNLGRP_NFTABLES)
    }

    /// Reports what the thread could not hear.
    pub(crate) fn report(&self, reason: String) {
        report(&self.disturbances, reason);
    }

    /// Ends the thread.
    pub(crate) fn stop(&mut self) {
        self.stopped.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // The answer wakes the thread.
            match ask_generation(&self.socket) {
                Ok(()) => drop(thread.join()),
                Err(error) => warn!(%error, "cannot wake the thread that watches our tables: it stays"),
            }
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.stop();
    }
}

// === impl Listener ===

impl Listener {
    fn run(mut self) {
        while let Some(reason) = self.next(None) {
            report(&self.disturbances, reason);
            // What happens next is most likely part of the same change, or our repair's other side.
            let end = Instant::now() + QUIET;
            let mut last = None;
            while let Some(left) = end
                .checked_duration_since(Instant::now())
                .filter(|left| !left.is_zero())
            {
                match self.next(Some(left)) {
                    Some(reason) => last = Some(reason),
                    None if self.stopped.load(Ordering::Acquire) => return,
                    None => {}
                }
            }
            last.into_iter().for_each(|reason| report(&self.disturbances, reason));
        }
    }

    /// Waits for a change of our tables by someone else. `None` when the time is over or the thread has to end.
    fn next(&mut self, timeout: Option<Duration>) -> Option<String> {
        if let Err(error) = self.socket.set_timeout(timeout) {
            return Some(format!("cannot wait for news of our tables: {error}"));
        }
        loop {
            if self.stopped.load(Ordering::Acquire) {
                return None;
            }
            match self.socket.receive() {
                Ok(datagram) => {
                    let foreign = |message: &Message<'_>| seen(message, &self.table, self.own);
                    if let Some(reason) = Messages(datagram).find_map(|message| foreign(&message)) {
                        return Some(reason);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    return Some("more nftables changes than could be heard".into());
                }
                Err(error) => return Some(format!("cannot hear of nftables changes: {error}")),
            }
            if timeout.is_some() {
                return None;
            }
        }
    }
}

/// What a notification says, if it is about one of our tables and someone else is behind it.
pub(crate) fn seen(message: &Message<'_>, table: &str, own: u32) -> Option<String> {
    let kind = message.nft_kind()?;
    let family = message.family()?;
    let ours = Family::ALL.into_iter().any(|ours| family_number(ours) == family);
    // The table's name is the first attribute of every kind of object.
    if !ours || message.port_id == own || message.attributes().text(NFTA_TABLE_NAME) != Some(table) {
        return None;
    }
    let what = match kind {
        NFT_MSG_NEWTABLE | NFT_MSG_DELTABLE => "the table itself",
        NFT_MSG_NEWCHAIN | NFT_MSG_DELCHAIN => "a chain",
        NFT_MSG_NEWRULE | NFT_MSG_DELRULE => "a rule",
        NFT_MSG_NEWSETELEM | NFT_MSG_DELSETELEM => "an element",
        _ => "something",
    };
    let family = if family == family_number(Family::V4) {
        "ip"
    } else {
        "ip6"
    };
    Some(format!("someone else changed {what} in table {family} {table}"))
}

/// A full channel holds a report already: the answer to it will do.
fn report(disturbances: &Sender<Disturbance>, reason: String) {
    debug!(reason, "disturbance");
    drop(disturbances.try_send(Disturbance { reason }));
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::backend::nft::tests::namespace::{in_namespace, run};

    #[test]
    fn news_that_were_lost_are_a_disturbance() {
        in_namespace(|| {
            let socket = Socket::open().unwrap();
            socket.join(NFNLGRP_NFTABLES).unwrap();
            let (disturbances, _) = tokio::sync::mpsc::channel(1);
            let mut listener = Listener {
                socket,
                table: "portolan".into(),
                own: 0,
                disturbances,
                stopped: Arc::default(),
            };
            // Somebody else's, and more of it than the socket holds: ours may have been among it.
            let mut text = String::from("table ip other {\nset s { type ipv4_addr;\nelements = {\n");
            for n in 0..120_000u32 {
                writeln!(text, "{},", std::net::Ipv4Addr::from(0x0a00_0000 + n)).unwrap();
            }
            text.push_str("}\n}\n}\n");
            let file = std::env::temp_dir().join(format!("portolan-overrun-{}.nft", std::process::id()));
            std::fs::write(&file, text).unwrap();
            run("nft", &["-f", &file.to_string_lossy()]);
            std::fs::remove_file(&file).unwrap();
            let reason = listener.next(Some(Duration::from_secs(10)));
            assert_eq!(reason.as_deref(), Some("more nftables changes than could be heard"));
        });
    }
}
