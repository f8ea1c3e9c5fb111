//! Objects written straight into etcd, many in one transaction.
//!
//! Making thousands of Services through the API server takes minutes: for every cluster IP that it gives it counts all
//! that it gave before. What it stores is only JSON under a key, so the bench lets it make one Service, slice and IPAddress
//! and writes the others in their likeness. To everyone who lists or watches there is no difference.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use portolan_lab::netns::Netns;
use serde_json::{Value, json};

/// Where the lab's etcd listens, in the control plane's namespace.
const ETCD: &str = "127.0.0.1:2379";
/// The most keys in one transaction that etcd takes as it is configured.
const KEYS_IN_ONE: usize = 120;
const PATIENCE: Duration = Duration::from_secs(60);

/// The etcd of the lab's control plane.
#[derive(Debug)]
pub struct Store {
    netns: Arc<Netns>,
}

/// An object and the key that the API server looks for it under.
#[derive(Debug)]
pub struct Record {
    /// The key: `/registry/services/specs/default/web`.
    pub key: String,
    /// The object as the API server writes it.
    pub object: Value,
}

// === impl Store ===

impl Store {
    /// The etcd that listens in this namespace.
    pub fn new(netns: Arc<Netns>) -> Self {
        Self { netns }
    }

    /// Writes all records, in order.
    ///
    /// # Errors
    /// When etcd refuses them.
    pub fn write(&self, records: &[Record]) -> Result<()> {
        self.netns.run(|| records.chunks(KEYS_IN_ONE).try_for_each(transact))
    }
}

/// Writes `records` in one transaction, from the calling thread's namespace.
fn transact(records: &[Record]) -> Result<()> {
    let put = |record: &Record| {
        json!({ "requestPut": {
            "key": BASE64_STANDARD.encode(&record.key), "value": BASE64_STANDARD.encode(record.object.to_string()),
        }})
    };
    let body = json!({ "success": records.iter().map(put).collect::<Vec<_>>() }).to_string();
    let mut stream = TcpStream::connect(ETCD).context("etcd does not listen")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let head = format!(
        "POST /v3/kv/txn HTTP/1.0\r\nHost: etcd\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(
        answer.contains("\"succeeded\":true"),
        "etcd did not take the objects: {answer}"
    );
    Ok(())
}
