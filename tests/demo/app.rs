//! The demo's client, and for the loopback its server: plain HTTP over plain sockets.
//!
//! Names are resolved by the system, as in any program: nothing here knows that there is a proxy. In the lab the servers
//! are the lab's own; this one answers in the same words, on every operating system.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// The longest answer that is read, in bytes.
const LONGEST: u64 = 64 * 1024;

/// What to ask.
#[derive(Debug, Clone, clap::Args)]
pub struct GetOptions {
    /// `http://host:port/path`
    pub url: String,
    /// How many times, each with a connection of its own
    #[arg(long, default_value_t = 1)]
    pub count: u32,
}

/// What came of asking.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answers {
    /// How often each pod answered.
    pub names: BTreeMap<String, u32>,
    /// The client addresses that the pods saw.
    pub clients: BTreeSet<String>,
    /// Why the others failed.
    pub failures: Vec<String>,
}

/// Answers every connection of a listener in the name of a pod.
pub fn serve(listener: &TcpListener, name: &str) -> Result<()> {
    loop {
        let (stream, client) = listener.accept().context("cannot accept connections")?;
        let name = name.to_owned();
        std::thread::spawn(move || {
            // A client that goes away early is its own business.
            let _ = answer(stream, client, &name);
        });
    }
}

fn answer(mut stream: TcpStream, client: SocketAddr, name: &str) -> io::Result<()> {
    const LONGEST_HEAD: usize = 8 * 1024;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        let read = stream.read(&mut buffer)?;
        if read == 0 || head.len() > LONGEST_HEAD {
            return Ok(());
        }
        head.extend_from_slice(buffer.get(..read).unwrap_or_default());
    }
    let body = format!("CLIENT VALUES:\nclient_address={}\nhostname={name}\n", client.ip());
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

/// Asks as often as wanted.
pub fn get(options: &GetOptions) -> Answers {
    let mut answers = Answers::default();
    for _ in 0..options.count {
        match ask(&options.url) {
            Ok((name, client)) => {
                *answers.names.entry(name).or_default() += 1;
                answers.clients.insert(client);
            }
            Err(error) => answers.failures.push(format!("{error:#}")),
        }
    }
    answers
}

/// All addresses of a name, by the system's resolver.
pub fn lookup(name: &str) -> Result<BTreeSet<IpAddr>> {
    let all = (name, 0)
        .to_socket_addrs()
        .with_context(|| format!("{name} does not resolve"))?;
    Ok(all.map(|address| address.ip()).collect())
}

/// The host, port and path of `http://host:port/path`; the port is 80 when there is none.
pub fn split_url(url: &str) -> Result<(&str, u16, &str)> {
    let rest = url
        .strip_prefix("http://")
        .with_context(|| format!("{url}: only http:// is understood"))?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    match authority.rsplit_once(':') {
        Some((host, port)) => Ok((
            host,
            port.parse().with_context(|| format!("{url}: {port} is no port"))?,
            path,
        )),
        None => Ok((authority, 80, path)),
    }
}

/// Who answered, and whom it saw.
fn ask(url: &str) -> Result<(String, String)> {
    let (host, port, path) = split_url(url)?;
    let mut addresses = (host, port)
        .to_socket_addrs()
        .with_context(|| format!("{host} does not resolve"))?;
    let address = addresses.next().with_context(|| format!("{host} has no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).with_context(|| address.to_string())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    )?;
    let mut bytes = Vec::new();
    stream
        .take(LONGEST)
        .read_to_end(&mut bytes)
        .with_context(|| format!("{address} answered only a part"))?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text
        .split_once("\r\n\r\n")
        .with_context(|| format!("{address} did not answer in HTTP"))?;
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    ensure!(status == "200", "{address} answered {status}");
    let field = |name: &str| body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let name = field("hostname").with_context(|| format!("{address} did not say who it is"))?;
    Ok((name.to_owned(), field("client_address").unwrap_or_default().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        assert_eq!(split_url("http://backend/").expect("is a URL"), ("backend", 80, ""));
        assert_eq!(
            split_url("http://127.0.0.1:8080/x/y").expect("is a URL"),
            ("127.0.0.1", 8080, "x/y")
        );
        assert!(split_url("https://backend/").is_err());
        assert!(split_url("http://backend:http/").is_err());
    }

    #[test]
    fn the_client_reads_what_the_server_says() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let url = format!(
            "http://{}/",
            listener.local_addr().expect("a bound socket has an address")
        );
        std::thread::spawn(move || serve(&listener, "backend-1"));
        let answers = get(&GetOptions { url, count: 3 });
        assert_eq!(answers.names, BTreeMap::from([("backend-1".to_owned(), 3)]));
        assert_eq!(answers.clients, BTreeSet::from(["127.0.0.1".to_owned()]));
        assert!(answers.failures.is_empty());
    }

    #[test]
    fn what_nobody_answers_is_a_failure() {
        let free = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a free port");
        let answers = get(&GetOptions {
            url: format!("http://{free}/"),
            count: 2,
        });
        assert_eq!((answers.names.len(), answers.failures.len()), (0, 2));
    }
}
