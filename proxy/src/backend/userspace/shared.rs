//! What every relay of the process shares: options, the knowledge of sources, counters, and buffers.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::UserspaceOptions;
use super::target::Sources;

/// Dropped connections that are held open, unanswered, at a time. Each costs a file.
const MAX_HELD: usize = 256;
/// The same complaint is logged no more often than this.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// Shared by the table, all listeners and all relays.
#[derive(Debug)]
pub(super) struct Shared {
    /// Never changes.
    pub(super) options: UserspaceOptions,
    /// Who is a pod, who is the node.
    pub(super) sources: Sources,
    /// For `status`.
    pub(super) counters: Counters,
    /// How many dropped connections may still be held.
    pub(super) held: Semaphore,
    /// The most files that this process can open, if there is a limit.
    pub(super) open_files: Option<u64>,
    complained: Mutex<Option<Instant>>,
}

/// What happened so far, and what is going on now.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) tcp_open: AtomicU64,
    pub(super) tcp_relayed: AtomicU64,
    pub(super) tcp_not_accepted: AtomicU64,
    pub(super) tcp_unreachable: AtomicU64,
    pub(super) udp_flows: AtomicU64,
    pub(super) udp_evicted: AtomicU64,
    pub(super) denied: AtomicU64,
}

impl Shared {
    pub(super) fn new(options: UserspaceOptions, open_files: Option<u64>) -> Self {
        Self {
            options,
            sources: Sources::default(),
            counters: Counters::default(),
            held: Semaphore::new(MAX_HELD),
            open_files,
            complained: Mutex::new(None),
        }
    }

    /// Logs that a socket could not be had, with the limit that is the usual cause. At most once a minute: whoever is
    /// out of sockets is so thousands of times a second.
    pub(super) fn complain(&self, what: &str, error: &std::io::Error) {
        let now = Instant::now();
        {
            let mut last = self.complained.lock().unwrap_or_else(PoisonError::into_inner);
            if last.is_some_and(|last| now < last + COMPLAIN_EVERY) {
                return;
            }
            *last = Some(now);
        }
        let limit = self
            .open_files
            .map_or_else(|| "no".to_owned(), |limit| limit.to_string());
        tracing::warn!(
            "{what}: {error} (open files limit: {limit}; raise it with `ulimit -n` or LimitNOFILE= if this says too many)"
        );
    }
}

/// Adds one now, takes it away when dropped.
pub(super) struct Count<'a>(&'a AtomicU64);

impl<'a> Count<'a> {
    pub(super) fn up(counter: &'a AtomicU64) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter)
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The largest datagram there is, and a good size for streams.
const BUFFER: usize = 65_536;

thread_local! {
    static SPARE: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// Room for bytes on their way. It is taken when there is something to read and given back when that is written, so a
/// connection that is idle costs none, and one whose receiver is slow costs one.
pub(super) struct Buffer(Option<Box<[u8]>>);

impl Buffer {
    pub(super) fn take() -> Self {
        let spare = SPARE.with(Cell::take);
        Self(Some(spare.unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice())))
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0.as_deref_mut().unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // At the end of a thread there is no spare to keep.
        let _ = SPARE.try_with(|spare| spare.set(self.0.take()));
    }
}
