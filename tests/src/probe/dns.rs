//! DNS by hand: a query as the checks send it, and a small server that plays the world outside the cluster.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::str::FromStr as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use serde::{Deserialize, Serialize};

use super::connect::{self, tcp_stream, udp_socket};

/// A query.
#[derive(Debug, Clone, clap::Args)]
pub struct QueryOptions {
    /// The server, `address:port`.
    pub server: SocketAddr,
    /// The name, taken as fully qualified.
    pub name: String,
    /// The type: A, AAAA, SRV, PTR, ...
    #[arg(default_value = "A")]
    pub kind: String,
    /// Asks over TCP.
    #[arg(long)]
    pub tcp: bool,
    /// How long it may take, in milliseconds.
    #[arg(long, default_value_t = 2000)]
    pub timeout_ms: u64,
}

/// A response, in the words of master files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// `NOERROR`, `NXDOMAIN`, ...
    pub rcode: String,
    /// The flags that are set, of `aa tc rd ra`.
    pub flags: Vec<String>,
    /// The answer section.
    pub answers: Vec<Answer>,
    /// The authority section.
    pub authorities: Vec<Answer>,
    /// The additional section, without OPT.
    pub additionals: Vec<Answer>,
}

/// One record of a response.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Answer {
    /// The owner.
    pub name: String,
    /// Seconds to live.
    pub ttl: u32,
    /// The type.
    pub kind: String,
    /// The data as text.
    pub data: String,
}

/// The outside world's records.
#[derive(Debug, Clone, clap::Args)]
pub struct ServeOptions {
    /// The addresses to listen on, `address:port`.
    #[arg(long)]
    pub listen: Vec<SocketAddr>,
    /// A record `name=value`: an address, or another name for a CNAME; may be repeated.
    #[arg(long)]
    pub record: Vec<String>,
    /// A file that is written once the server listens.
    #[arg(long)]
    pub ready_file: Option<std::path::PathBuf>,
}

/// Sends one query and reads the response, with no retry and no second server.
///
/// # Errors
/// When nobody answers or the answer cannot be read.
pub fn query(options: &QueryOptions) -> Result<Response> {
    let name = Name::from_ascii(&options.name).with_context(|| format!("{:?} is no name", options.name))?;
    let kind = RecordType::from_str(&options.kind.to_uppercase())
        .ok()
        .with_context(|| format!("{:?} is no record type", options.kind))?;
    let id = u16::try_from(std::process::id() % 65_536).unwrap_or_default();
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let mut name = name;
    name.set_fqdn(true);
    message.add_query(Query::query(name, kind));
    let bytes = message.to_vec().context("the query cannot be written")?;
    let reply = if options.tcp {
        over_tcp(options, &bytes)?
    } else {
        over_udp(options, &bytes)?
    };
    let reply = Message::from_vec(&reply).context("the response cannot be read")?;
    ensure!(reply.metadata.id == id, "the response belongs to another query");
    Ok(response(&reply))
}

fn over_udp(options: &QueryOptions, bytes: &[u8]) -> Result<Vec<u8>> {
    let socket = udp_socket(options.server, &plain(options))?;
    socket.set_read_timeout(Some(Duration::from_millis(options.timeout_ms)))?;
    socket.send(bytes)?;
    let mut buffer = vec![0; 65_535];
    let length = socket.recv(&mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

fn over_tcp(options: &QueryOptions, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut stream = tcp_stream(
        options.server,
        &plain(options),
        Duration::from_millis(options.timeout_ms),
    )?;
    stream.write_all(&u16::try_from(bytes.len())?.to_be_bytes())?;
    stream.write_all(bytes)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut buffer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut buffer)?;
    Ok(buffer)
}

fn plain(options: &QueryOptions) -> connect::Options {
    connect::Options {
        target: String::new(),
        udp: !options.tcp,
        count: 1,
        timeout_ms: options.timeout_ms,
        size: 0,
        source_port: None,
        unconnected: false,
        mapped: false,
        source: None,
        family: None,
        keep_going: false,
        until_stdin_closes: None,
    }
}

fn response(message: &Message) -> Response {
    let records = |list: &[Record]| {
        let one = |r: &Record| Answer {
            name: r.name.to_string(),
            ttl: r.ttl,
            kind: r.record_type().to_string(),
            data: r.data.to_string(),
        };
        list.iter().map(one).collect()
    };
    let meta = &message.metadata;
    let flags = [
        ("aa", meta.authoritative),
        ("tc", meta.truncation),
        ("rd", meta.recursion_desired),
        ("ra", meta.recursion_available),
    ];
    let rcode = match meta.response_code {
        ResponseCode::NoError => "NOERROR".to_owned(),
        ResponseCode::FormErr => "FORMERR".to_owned(),
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        ResponseCode::NXDomain => "NXDOMAIN".to_owned(),
        ResponseCode::NotImp => "NOTIMP".to_owned(),
        ResponseCode::Refused => "REFUSED".to_owned(),
        other => other.to_string(),
    };
    Response {
        rcode,
        flags: flags
            .into_iter()
            .filter(|(_, set)| *set)
            .map(|(name, _)| name.to_owned())
            .collect(),
        answers: records(&message.answers),
        authorities: records(&message.authorities),
        additionals: records(&message.additionals),
    }
}

/// Answers over UDP from a fixed list until it is killed: authoritative, NXDOMAIN for every name that is not listed.
///
/// # Errors
/// When a record or an address is wrong.
pub fn serve(options: &ServeOptions) -> Result<()> {
    let mut records: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for record in &options.record {
        let (name, value) = record
            .split_once('=')
            .with_context(|| format!("{record:?} is not name=value"))?;
        let name = name.trim_end_matches('.').to_lowercase();
        records.entry(name).or_default().push(value.to_owned());
    }
    let mut threads = Vec::new();
    for at in &options.listen {
        let socket = UdpSocket::bind(at).with_context(|| format!("UDP port {at} cannot be opened"))?;
        let records = records.clone();
        threads.push(std::thread::spawn(move || answer_all(&socket, &records)));
    }
    if let Some(file) = &options.ready_file {
        std::fs::write(file, "ready\n")?;
    }
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

fn answer_all(socket: &UdpSocket, records: &BTreeMap<String, Vec<String>>) {
    let mut buffer = vec![0; 65_535];
    loop {
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let Ok(query) = Message::from_vec(buffer.get(..length).unwrap_or_default()) else {
            continue;
        };
        if let Ok(bytes) = answer(&query, records).to_vec() {
            let _ = socket.send_to(&bytes, peer);
        }
    }
}

fn answer(query: &Message, records: &BTreeMap<String, Vec<String>>) -> Message {
    let mut reply = Message::response(query.metadata.id, OpCode::Query);
    reply.metadata.authoritative = true;
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    let Some(asked) = query.queries.first() else {
        return reply;
    };
    reply.add_query(asked.clone());
    let mut owner = asked.name().clone();
    // A chain longer than this is a loop.
    for _ in 0..8 {
        let Some(values) = records.get(owner.to_string().trim_end_matches('.').to_lowercase().as_str()) else {
            if reply.answers.is_empty() {
                reply.metadata.response_code = ResponseCode::NXDomain;
            }
            return reply;
        };
        let mut next = None;
        for value in values {
            let data = match (value.parse::<IpAddr>(), asked.query_type()) {
                (Ok(IpAddr::V4(ip)), RecordType::A) => RData::A(A(ip)),
                (Ok(IpAddr::V6(ip)), RecordType::AAAA) => RData::AAAA(AAAA(ip)),
                (Ok(_), _) => continue,
                (Err(_), _) => {
                    let Ok(mut name) = Name::from_ascii(value) else {
                        continue;
                    };
                    name.set_fqdn(true);
                    next = Some(name.clone());
                    RData::CNAME(CNAME(name))
                }
            };
            reply.add_answer(Record::from_rdata(owner.clone(), 60, data));
        }
        match next {
            Some(name) => owner = name,
            None => return reply,
        }
    }
    reply
}
