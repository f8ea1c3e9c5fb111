//! Session affinity by client address: which endpoint a client had, and until when it keeps it.
//!
//! One table for each Service port and family, shared by all its frontends. It outlives plans; an entry never outlives
//! its endpoint.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Clients that one Service port remembers. Beyond it the table is emptied of what has expired, then of everything:
/// whoever can send from that many addresses must not be able to fill the memory.
const MAX_CLIENTS: usize = 65_536;

/// The memory of one Service port.
#[derive(Debug, Default)]
pub(super) struct Affinity {
    clients: Mutex<HashMap<IpAddr, Entry>>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    endpoint: SocketAddr,
    expires: Instant,
}

impl Affinity {
    /// The endpoint that the client has, unless its time is over.
    pub(super) fn endpoint(&self, client: IpAddr, now: Instant) -> Option<SocketAddr> {
        let clients = self.lock();
        let entry = clients.get(&client)?;
        (now < entry.expires).then_some(entry.endpoint)
    }

    /// Remembers the client's endpoint. Each new connection starts the time anew, as in kube-proxy.
    pub(super) fn learn(&self, client: IpAddr, endpoint: SocketAddr, timeout: Duration, now: Instant) {
        let mut clients = self.lock();
        if clients.len() >= MAX_CLIENTS && !clients.contains_key(&client) {
            clients.retain(|_, entry| now < entry.expires);
            if clients.len() >= MAX_CLIENTS {
                clients.clear();
            }
        }
        let expires = now + timeout;
        clients.insert(client, Entry { endpoint, expires });
    }

    /// Forgets every endpoint that `serves` denies.
    pub(super) fn keep(&self, serves: impl Fn(&SocketAddr) -> bool) {
        self.lock().retain(|_, entry| serves(&entry.endpoint));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Entry>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_keeps_its_endpoint_until_the_time_since_its_last_connection_is_over() {
        let affinity = Affinity::default();
        let client: IpAddr = "10.244.1.7".parse().unwrap();
        let endpoint: SocketAddr = "10.244.2.9:8080".parse().unwrap();
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let timeout = Duration::from_secs(10);
        assert_eq!(affinity.endpoint(client, at(0)), None);
        affinity.learn(client, endpoint, timeout, at(0));
        assert_eq!(affinity.endpoint(client, at(9)), Some(endpoint));
        affinity.learn(client, endpoint, timeout, at(9));
        assert_eq!(
            affinity.endpoint(client, at(18)),
            Some(endpoint),
            "the second connection renewed it"
        );
        assert_eq!(affinity.endpoint(client, at(19)), None);
    }

    #[test]
    fn an_endpoint_that_is_gone_is_forgotten_and_the_table_is_bounded() {
        let affinity = Affinity::default();
        let gone: SocketAddr = "10.244.2.9:8080".parse().unwrap();
        let stays: SocketAddr = "10.244.2.10:8080".parse().unwrap();
        let now = Instant::now();
        for number in 0..MAX_CLIENTS as u32 + 10 {
            let endpoint = if number % 2 == 0 { gone } else { stays };
            affinity.learn(
                IpAddr::from(number.to_be_bytes()),
                endpoint,
                Duration::from_secs(10),
                now,
            );
        }
        assert!(affinity.lock().len() <= MAX_CLIENTS);
        let (even, odd) = (MAX_CLIENTS as u32 + 2, MAX_CLIENTS as u32 + 3);
        affinity.keep(|endpoint| *endpoint == stays);
        assert_eq!(affinity.endpoint(IpAddr::from(even.to_be_bytes()), now), None);
        assert_eq!(affinity.endpoint(IpAddr::from(odd.to_be_bytes()), now), Some(stays));
    }
}
