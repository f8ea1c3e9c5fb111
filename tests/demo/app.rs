//! The demo's application: an HTTP server that says who it is, whom it saw and what others answered to it, and its client.
//!
//! Plain sockets and the system's resolver, as any program uses them: nothing here knows that there is a proxy.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// The longest request or answer that is read.
const LONGEST: u64 = 64 * 1024;

/// One instance of the application.
#[derive(Debug, Clone, clap::Args)]
pub struct ServeOptions {
    /// Its name: its pod's
    #[arg(long)]
    pub name: String,
    /// Where it listens
    #[arg(long)]
    pub listen: SocketAddr,
    /// A URL that it asks for each request, so that its answer holds theirs; may be repeated
    #[arg(long)]
    pub ask: Vec<String>,
}

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
    /// How often each instance answered.
    pub names: BTreeMap<String, u32>,
    /// The client addresses that the instances saw.
    pub clients: BTreeSet<String>,
    /// Why the others failed.
    pub failures: Vec<String>,
    /// The last answer in full.
    pub last: String,
}

/// Serves until it is killed.
pub fn serve(options: &ServeOptions) -> Result<()> {
    let listener = TcpListener::bind(options.listen).with_context(|| format!("cannot listen on {}", options.listen))?;
    accept(&listener, options)
}

/// Answers every connection of a listener.
pub fn accept(listener: &TcpListener, options: &ServeOptions) -> Result<()> {
    loop {
        let (stream, client) = listener.accept().context("cannot accept connections")?;
        let options = options.clone();
        std::thread::spawn(move || {
            // A client that goes away early is its own business.
            let _ = answer(stream, client, &options);
        });
    }
}

fn answer(mut stream: TcpStream, client: SocketAddr, options: &ServeOptions) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        let read = stream.read(&mut buffer)?;
        if read == 0 || head.len() > 8 * 1024 {
            return Ok(());
        }
        head.extend_from_slice(buffer.get(..read).unwrap_or_default());
    }
    let mut body = format!("{} saw {}\n", options.name, client.ip());
    for url in &options.ask {
        let text = fetch(url).unwrap_or_else(|error| format!("failed: {error:#}"));
        body += &format!("  {url} -> {}\n", text.lines().next().unwrap_or_default());
    }
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// Asks as often as wanted.
pub fn get(options: &GetOptions) -> Result<Answers> {
    let mut answers = Answers::default();
    for _ in 0..options.count {
        match fetch(&options.url) {
            Ok(body) => {
                let first = body.lines().next().unwrap_or_default();
                let (name, client) = first.split_once(" saw ").unwrap_or((first, ""));
                *answers.names.entry(name.to_owned()).or_default() += 1;
                answers.clients.insert(client.to_owned());
                answers.last = body;
            }
            Err(error) => answers.failures.push(format!("{error:#}")),
        }
    }
    Ok(answers)
}

/// All addresses of a name, by the system's resolver.
pub fn lookup(name: &str) -> Result<BTreeSet<IpAddr>> {
    let all = (name, 0).to_socket_addrs().with_context(|| format!("{name} does not resolve"))?;
    Ok(all.map(|address| address.ip()).collect())
}

/// The host, port and path of `http://host:port/path`; the port is 80 when there is none.
pub fn split_url(url: &str) -> Result<(&str, u16, &str)> {
    let rest = url.strip_prefix("http://").with_context(|| format!("{url}: only http:// is understood"))?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    match authority.rsplit_once(':') {
        Some((host, port)) => Ok((host, port.parse().with_context(|| format!("{url}: {port} is no port"))?, path)),
        None => Ok((authority, 80, path)),
    }
}

fn fetch(url: &str) -> Result<String> {
    let (host, port, path) = split_url(url)?;
    let mut addresses = (host, port).to_socket_addrs().with_context(|| format!("{host} does not resolve"))?;
    let address = addresses.next().with_context(|| format!("{host} has no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).with_context(|| format!("{address}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut bytes = Vec::new();
    stream.take(LONGEST).read_to_end(&mut bytes).with_context(|| format!("{address} answered only a part"))?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("{address} did not answer in HTTP"))?;
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    anyhow::ensure!(status == "200", "{address} answered {status}");
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        assert_eq!(split_url("http://backend/").expect("is a URL"), ("backend", 80, ""));
        assert_eq!(split_url("http://127.0.0.1:8080/x/y").expect("is a URL"), ("127.0.0.1", 8080, "x/y"));
        assert!(split_url("https://backend/").is_err());
        assert!(split_url("http://backend:http/").is_err());
    }

    #[test]
    fn an_answer_names_the_server_and_what_it_was_told() {
        let start = |name: &str, ask: Vec<String>| {
            let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
            let listen = listener.local_addr().expect("a bound socket has an address");
            let options = ServeOptions { name: name.to_owned(), listen, ask };
            std::thread::spawn(move || accept(&listener, &options));
            format!("http://{listen}/")
        };
        let inner = start("backend-1", Vec::new());
        let outer = start("frontend-1", vec![inner.clone()]);
        let answers = get(&GetOptions { url: outer, count: 3 }).expect("failures are part of the answer");
        assert_eq!(answers.names, BTreeMap::from([("frontend-1".to_owned(), 3)]));
        assert_eq!(answers.clients, BTreeSet::from(["127.0.0.1".to_owned()]));
        assert!(answers.last.contains(&format!("{inner} -> backend-1 saw 127.0.0.1")), "{}", answers.last);
    }
}
