//! The client's side: when a connection first succeeds, who answers first, and what one connection costs.
//!
//! Every connection is reset when it is closed. Nothing stays in TIME_WAIT, where it would swallow a later attempt from
//! the same port.

use std::collections::VecDeque;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use portolan_lab::probe::Hello;
use socket2::{Domain, Protocol, Socket, Type};

/// The time between two attempts at a first connection: its resolution.
const STEP: Duration = Duration::from_millis(1);
/// How many attempts may be under way. The oldest is given up when there are more.
const UNDER_WAY: usize = 32;
/// How long one connection and its answer may take before the next attempt: far longer than it does take, and short enough
/// that a lost packet does not pass for a slow proxy.
const PATIENCE: Duration = Duration::from_millis(50);

/// Waits for the first connection to `target` from the calling thread's namespace and returns when it was made.
///
/// # Errors
/// When `stop` turned true before, or the system refuses to make sockets.
pub fn first_connection(target: SocketAddr, stop: &AtomicBool) -> Result<Instant> {
    let mut attempts = VecDeque::with_capacity(UNDER_WAY);
    while !stop.load(Ordering::Relaxed) {
        if attempts.len() == UNDER_WAY {
            attempts.pop_front();
        }
        attempts.extend(begin(target)?);
        if let Some(made) = wait(&mut attempts, Instant::now() + STEP)? {
            return Ok(made);
        }
    }
    bail!("no connection to {target} was made");
}

/// Whether `target` can be reached at all within `patience`.
///
/// # Errors
/// When the system refuses to make sockets.
pub fn is_reachable(target: SocketAddr, patience: Duration) -> Result<bool> {
    let mut attempts: VecDeque<Socket> = begin(target)?.into_iter().collect();
    Ok(wait(&mut attempts, Instant::now() + patience)?.is_some())
}

/// Waits for the first connection to `target` that the server called `name` answers, and returns when it did.
///
/// # Errors
/// When `stop` turned true before.
pub fn first_answer(target: SocketAddr, name: &str, stop: &AtomicBool) -> Result<Instant> {
    let start = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        // While rules change an attempt may fail; the next one follows.
        if ask(target).is_ok_and(|hello| hello.name == name) {
            return Ok(Instant::now());
        }
        std::thread::sleep((start.elapsed() / 100).min(STEP));
    }
    bail!("no connection to {target} was answered by {name}");
}

/// Opens a connection and asks who answers.
///
/// # Errors
/// When there is no connection or no answer.
pub fn ask(target: SocketAddr) -> io::Result<Hello> {
    let stream = connect(target)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut stream = BufReader::new(stream);
    stream.get_mut().write_all(b"hello\n")?;
    let mut line = String::new();
    stream.read_line(&mut line)?;
    serde_json::from_str(&line).map_err(io::Error::other)
}

/// Opens `count` connections one after the other, to each of `targets` in turn, and returns how long each `connect` took.
///
/// # Errors
/// When a connection fails.
pub fn connect_times(targets: &[SocketAddr], count: u32) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for target in targets.iter().cycle().take(usize::try_from(count)?) {
        let socket = reset_on_close(*target)?;
        let start = Instant::now();
        socket
            .connect(&(*target).into())
            .with_context(|| format!("connection {} to {target} failed", times.len() + 1))?;
        times.push(start.elapsed());
    }
    Ok(times)
}

fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let socket = reset_on_close(target)?;
    socket.connect_timeout(&target.into(), PATIENCE)?;
    Ok(socket.into())
}

fn reset_on_close(target: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_linger(Some(Duration::ZERO))?;
    Ok(socket)
}

/// Begins to connect. `None` when the system knows at once that there is no way.
fn begin(target: SocketAddr) -> Result<Option<Socket>> {
    let socket = reset_on_close(target).context("no socket can be made")?;
    socket.set_nonblocking(true)?;
    match socket.connect(&target.into()) {
        Ok(()) => Ok(Some(socket)),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(Some(socket)),
        Err(_) => Ok(None),
    }
}

/// Waits until one of `attempts` is a connection; those that fail are dropped. `None` at the deadline, never before.
fn wait(attempts: &mut VecDeque<Socket>, deadline: Instant) -> Result<Option<Instant>> {
    loop {
        let mut ready: Vec<libc::pollfd> = attempts.iter().map(poll_writable).collect();
        let left = deadline.saturating_duration_since(Instant::now());
        poll(&mut ready, left)?;
        let now = Instant::now();
        for index in (0..ready.len()).rev() {
            let Some(socket) = attempts.get(index).filter(|_| ready[index].revents != 0) else {
                continue;
            };
            match socket.take_error() {
                Ok(None) if socket.peer_addr().is_ok() => return Ok(Some(now)),
                _ => drop(attempts.remove(index)),
            }
        }
        if now >= deadline {
            return Ok(None);
        }
    }
}

fn poll_writable(socket: &Socket) -> libc::pollfd {
    libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    }
}

/// `poll` with a resolution of nanoseconds.
fn poll(sockets: &mut [libc::pollfd], patience: Duration) -> Result<()> {
    let timeout = libc::timespec {
        tv_sec: libc::time_t::try_from(patience.as_secs())?,
        tv_nsec: libc::c_long::from(patience.subsec_nanos()),
    };
    let count = libc::nfds_t::try_from(sockets.len())?;
    // SAFETY: `sockets` and `timeout` are valid for the duration of the call, and `count` is their number.
    let result = unsafe { libc::ppoll(sockets.as_mut_ptr(), count, &raw const timeout, std::ptr::null()) };
    if result < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error).context("poll failed");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_listener_is_reached_and_a_closed_port_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let open = listener.local_addr().unwrap();
        assert!(is_reachable(open, PATIENCE).unwrap());
        assert!(first_connection(open, &AtomicBool::new(false)).is_ok());
        assert_eq!(connect_times(&[open], 3).unwrap().len(), 3);
        drop(listener);
        assert!(!is_reachable(open, STEP).unwrap());
        assert!(first_connection(open, &AtomicBool::new(true)).is_err());
    }
}
