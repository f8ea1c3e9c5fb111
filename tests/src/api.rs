//! A small client of the API server, through the Unix socket of `kubectl proxy`.
//!
//! `kubectl proxy` does TLS and authentication, so this module is only requests and JSON: fast enough to apply every object
//! of every scenario, where a `kubectl` process for each would cost more than the scenario itself. It works from any
//! network namespace, because the socket is a file.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::object::{ObjectKey, merge};

/// The API server as seen through one socket. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ApiClient {
    socket: PathBuf,
}

/// One event of a watch.
#[derive(Debug, Clone)]
pub struct WatchEvent {
    /// `ADDED`, `MODIFIED` or `DELETED`.
    pub kind: String,
    /// The object after the change.
    pub object: Value,
}

// === impl ApiClient ===

impl ApiClient {
    /// A client of the `kubectl proxy` that listens on `socket`.
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// Fetches any path as text: `/readyz`, `/version`.
    ///
    /// # Errors
    /// When nobody answers or the status is not 2xx.
    pub fn get_text(&self, path: &str) -> Result<String> {
        self.request("GET", path, None)
    }

    /// The object, or `None` when it does not exist.
    ///
    /// # Errors
    /// When nobody answers or the request is refused.
    pub fn get(&self, key: &ObjectKey) -> Result<Option<Value>> {
        match self.request("GET", &key.path()?, None) {
            Ok(text) => Ok(Some(serde_json::from_str(&text)?)),
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Creates an object that does not exist yet: cheaper for the server than [`ApiClient::apply`].
    ///
    /// # Errors
    /// When the server refuses it.
    pub fn create(&self, object: &Value) -> Result<()> {
        let key = ObjectKey::of(object)?;
        let path = key.path()?;
        let collection = path
            .rsplit_once('/')
            .map_or(path.as_str(), |(collection, _)| collection);
        self.request("POST", collection, Some(("application/json", object)))
            .with_context(|| format!("{key} was not created"))?;
        Ok(())
    }

    /// Creates the object or makes it what `object` says (server-side apply), its status included when it has one.
    ///
    /// # Errors
    /// When the server refuses it; the message is the server's.
    pub fn apply(&self, object: &Value) -> Result<()> {
        let key = ObjectKey::of(object)?;
        let mut main = object.clone();
        let status = main.as_object_mut().and_then(|fields| fields.remove("status"));
        let path = format!("{}?fieldManager=portolan-lab&force=true", key.path()?);
        self.request("PATCH", &path, Some(("application/apply-patch+yaml", &main)))
            .with_context(|| format!("{key} was not applied"))?;
        if let Some(status) = status {
            self.patch_status(&key, &json!({ "status": status }))?;
        }
        Ok(())
    }

    /// Merges `patch` into the object.
    ///
    /// # Errors
    /// When the server refuses it.
    pub fn patch(&self, key: &ObjectKey, patch: &Value) -> Result<()> {
        let path = format!("{}?fieldManager=portolan-lab", key.path()?);
        self.request("PATCH", &path, Some(("application/merge-patch+json", patch)))
            .with_context(|| format!("{key} was not patched"))?;
        Ok(())
    }

    /// Merges `patch` (`{"status": ...}`) into the object's status.
    ///
    /// # Errors
    /// When the server refuses it.
    pub fn patch_status(&self, key: &ObjectKey, patch: &Value) -> Result<()> {
        let path = format!("{}/status?fieldManager=portolan-lab", key.path()?);
        self.request("PATCH", &path, Some(("application/merge-patch+json", patch)))
            .with_context(|| format!("the status of {key} was not patched"))?;
        Ok(())
    }

    /// Binds a pod to a node, as the scheduler does.
    ///
    /// # Errors
    /// When the server refuses it.
    pub fn bind(&self, pod: &ObjectKey, node: &str) -> Result<()> {
        let body = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": { "name": pod.name },
            "target": { "apiVersion": "v1", "kind": "Node", "name": node },
        });
        self.request(
            "POST",
            &format!("{}/binding", pod.path()?),
            Some(("application/json", &body)),
        )?;
        Ok(())
    }

    /// Deletes the object with this grace period in seconds; silent when it does not exist.
    ///
    /// # Errors
    /// When the server refuses it.
    pub fn delete(&self, key: &ObjectKey, grace: Option<u32>) -> Result<()> {
        self.delete_with(key, &json!({ "gracePeriodSeconds": grace }))
    }

    /// Deletes at once the object that has this uid; silent when it does not exist, or when another one has its name by now.
    ///
    /// # Errors
    /// When the server refuses it.
    pub fn delete_exactly(&self, key: &ObjectKey, uid: &str) -> Result<()> {
        let options = json!({ "gracePeriodSeconds": 0, "preconditions": { "uid": uid } });
        match self.delete_with(key, &options) {
            Err(error) if has_status(&error, 409) => Ok(()),
            done => done,
        }
    }

    /// Deletes an object and leaves what it owns; silent when it does not exist.
    ///
    /// # Errors
    /// When the server refuses it.
    pub fn delete_alone(&self, key: &ObjectKey) -> Result<()> {
        self.delete_with(key, &json!({ "propagationPolicy": "Orphan" }))
    }

    fn delete_with(&self, key: &ObjectKey, options: &Value) -> Result<()> {
        let mut body = json!({ "apiVersion": "v1", "kind": "DeleteOptions" });
        merge(&mut body, options);
        match self.request("DELETE", &key.path()?, Some(("application/json", &body))) {
            Err(error) if !is_not_found(&error) => Err(error.context(format!("{key} was not deleted"))),
            _ => Ok(()),
        }
    }

    /// The items of a list: `/api/v1/pods`.
    ///
    /// # Errors
    /// When nobody answers or the request is refused.
    pub fn list(&self, path: &str) -> Result<Vec<Value>> {
        let mut list: Value = serde_json::from_str(&self.request("GET", path, None)?)?;
        let items = list.get_mut("items").map(Value::take);
        Ok(items
            .and_then(|items| serde_json::from_value(items).ok())
            .unwrap_or_default())
    }

    /// Follows a list from its present state on (`/api/v1/pods`) and hands every event to `each` until that returns false
    /// or the server goes away.
    ///
    /// # Errors
    /// When the watch cannot be started or an event cannot be read.
    pub fn watch(&self, path: &str, mut each: impl FnMut(WatchEvent) -> bool) -> Result<()> {
        let mut stream = self.open("GET", &format!("{path}?watch=true"), None)?;
        stream.get_mut().set_read_timeout(None)?;
        let status = read_head(&mut stream)?;
        anyhow::ensure!(status == 200, "watch of {path}: status {status}");
        let mut line = String::new();
        loop {
            line.clear();
            if stream.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let mut event: Value = serde_json::from_str(&line)?;
            let kind = event.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
            let object = event.get_mut("object").map(Value::take).unwrap_or_default();
            if !each(WatchEvent { kind, object }) {
                return Ok(());
            }
        }
    }

    fn request(&self, method: &str, path: &str, body: Option<(&str, &Value)>) -> Result<String> {
        let mut stream = self.open(method, path, body)?;
        let status = read_head(&mut stream)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        if !(200..300).contains(&status) {
            let said: Value = serde_json::from_str(&text).unwrap_or_default();
            let message = said
                .get("message")
                .and_then(Value::as_str)
                .unwrap_or(text.trim())
                .to_owned();
            return Err(ApiError { status, message }.into());
        }
        Ok(text)
    }

    /// Sends a request in HTTP/1.0, whose response simply ends with the connection.
    fn open(&self, method: &str, path: &str, body: Option<(&str, &Value)>) -> Result<BufReader<UnixStream>> {
        let mut stream = UnixStream::connect(&self.socket)
            .with_context(|| format!("kubectl proxy does not listen on {}", self.socket.display()))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut text = format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\nAccept: application/json\r\n");
        let bytes = match body {
            Some((kind, value)) => {
                let bytes = serde_json::to_vec(value)?;
                text += &format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", bytes.len());
                bytes
            }
            None => Vec::new(),
        };
        text += "\r\n";
        stream.write_all(text.as_bytes())?;
        stream.write_all(&bytes)?;
        Ok(BufReader::new(stream))
    }
}

/// What the API server refused, in its words.
#[derive(Debug)]
pub struct ApiError {
    /// The HTTP status.
    pub status: u16,
    /// The server's message.
    pub message: String,
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the API server said {}: {}", self.status, self.message)
    }
}

impl std::error::Error for ApiError {}

fn is_not_found(error: &anyhow::Error) -> bool {
    has_status(error, 404)
}

fn has_status(error: &anyhow::Error, status: u16) -> bool {
    error
        .downcast_ref::<ApiError>()
        .is_some_and(|error| error.status == status)
}

fn read_head(stream: &mut BufReader<UnixStream>) -> Result<u16> {
    let mut first = String::new();
    stream.read_line(&mut first)?;
    let Some(status) = first.split(' ').nth(1).and_then(|code| code.parse().ok()) else {
        bail!("kubectl proxy did not answer with HTTP but with {first:?}");
    };
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 || line.trim_end().is_empty() {
            return Ok(status);
        }
    }
}
