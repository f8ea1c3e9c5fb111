//! Queries: the files that dnsperf reads, its runs, and what they tell.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use portolan_lab::lab::Lab;

use crate::objects::{NAMESPACE, Objects, service_name};
use crate::subject::{Running, tool};

/// The core of dnsperf.
const CLIENT_CORE: &str = "1";
/// The zone of the outside world.
pub const OUTSIDE: &str = "example.org";
/// Names that a load asks for, at most.
const NAMES: u32 = 5000;
/// Queries a second while answer times are taken.
const CALM: u32 = 2000;

/// A load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// Addresses of Services
    Positive,
    /// 45 % A, 45 % AAAA without data, 10 % names that do not exist
    Mixed,
    /// Names of the outside world that have been asked for before
    Cached,
}

/// The query files.
#[derive(Debug)]
pub struct Files([PathBuf; 3]);

/// What one run of a load shows.
#[derive(Debug)]
pub struct Loaded {
    /// Queries a second.
    pub rate: f64,
    /// CPU time of the server for each query, in microseconds.
    pub cpu_micros: f64,
    /// Queries without an answer.
    pub lost: u64,
    /// The median of the answer time at a small rate, in microseconds.
    pub p50_micros: f64,
    /// Its 99th percentile.
    pub p99_micros: f64,
}

// === impl Kind ===

impl Kind {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Positive => "positive",
            Self::Mixed => "mixed",
            Self::Cached => "cached",
        }
    }
}

// === impl Files ===

impl Files {
    /// The file of a load.
    pub fn of(&self, kind: Kind) -> &Path {
        &self.0[kind as usize]
    }
}

/// A name of the outside world.
pub fn outside_name(number: u32) -> String {
    format!("host-{number}.{OUTSIDE}")
}

/// Writes the query files. Names come in an order that is no order, the same in every run.
///
/// # Errors
/// When a file cannot be written.
pub fn write_files(lab: &Lab, objects: &Objects) -> Result<Files> {
    let count = objects.services.min(NAMES);
    // Steps of a prime walk over all names before one comes again.
    let numbers = (0..count).map(|i| (u64::from(i) * 7919 % u64::from(count)) as u32);
    let (mut positive, mut mixed, mut cached) = (String::new(), String::new(), String::new());
    for (i, number) in numbers.enumerate() {
        let name = format!("{}.{NAMESPACE}.svc.cluster.local", service_name(number));
        let _ = writeln!(positive, "{name} A");
        let _ = match i % 20 {
            0..9 => writeln!(mixed, "{name} A"),
            9..18 => writeln!(mixed, "{name} AAAA"),
            _ => writeln!(mixed, "absent-{number}.{NAMESPACE}.svc.cluster.local A"),
        };
        let _ = writeln!(cached, "{} A", outside_name(number));
    }
    Ok(Files([
        write(lab, "positive", &positive)?,
        write(lab, "mixed", &mixed)?,
        write(lab, "cached", &cached)?,
    ]))
}

fn write(lab: &Lab, name: &str, text: &str) -> Result<PathBuf> {
    let file = lab.scratch().join(format!("bench-{name}"));
    std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

fn dnsperf(server: &Running, file: &Path, options: &[&str]) -> Result<String> {
    let program = tool("dnsperf")?;
    let (ip, port) = (server.address.ip().to_string(), server.address.port().to_string());
    let file = file.display().to_string();
    let program = program.display().to_string();
    let mut args = vec!["-c", CLIENT_CORE, &program, "-s", &ip, "-p", &port, "-d", &file];
    args.extend(options);
    server.place.output("taskset", args)
}

/// Asks every query of a file once.
///
/// # Errors
/// When dnsperf fails.
pub fn warm(server: &Running, file: &Path) -> Result<()> {
    dnsperf(server, file, &["-n", "1", "-q", "20"]).map(drop)
}

/// Runs a load.
///
/// # Errors
/// When dnsperf fails or says something else than it should.
pub fn run(server: &Running, file: &Path, seconds: u32) -> Result<Loaded> {
    let before = server.cpu()?;
    let text = dnsperf(
        server,
        file,
        &["-l", &seconds.to_string(), "-c", "4", "-q", "200", "-e"],
    )?;
    let cpu = server.cpu()?.saturating_sub(before);
    let completed = field(&text, "Queries completed:")?;
    let calm = dnsperf(server, file, &["-l", "1", "-Q", &CALM.to_string(), "-v", "-e"])?;
    let mut times = latencies(&calm);
    times.sort_by(f64::total_cmp);
    let at = |share: f64| {
        times
            .get((times.len() as f64 * share) as usize)
            .copied()
            .unwrap_or(f64::NAN)
    };
    Ok(Loaded {
        rate: field(&text, "Queries per second:")?,
        cpu_micros: cpu.as_secs_f64() * 1e6 / completed.max(1.0),
        lost: field(&text, "Queries lost:")? as u64,
        p50_micros: at(0.5) * 1e6,
        p99_micros: at(0.99) * 1e6,
    })
}

fn field(text: &str, name: &str) -> Result<f64> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.with_context(|| format!("dnsperf does not say {name:?}:\n{text}"))
}

/// Seconds at the ends of the lines `> NOERROR name type 0.000123`.
fn latencies(text: &str) -> Vec<f64> {
    let lines = text.lines().filter(|line| line.starts_with("> "));
    lines
        .filter_map(|line| line.split_whitespace().last()?.parse().ok())
        .collect()
}

/// The IPv4 addresses that a server gives for a name.
///
/// # Errors
/// When it does not answer within half a second.
pub fn ask(server: &Running, name: &str) -> Result<Vec<Ipv4Addr>> {
    let mut message = Message::new(1, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(format!("{name}."))?, RecordType::A));
    let query = message.to_vec()?;
    let address = server.address;
    let reply = server.netns.run(move || {
        let any: IpAddr = Ipv4Addr::LOCALHOST.into();
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        socket.connect(address)?;
        socket.send(&query)?;
        let mut buffer = vec![0; 4096];
        let length = socket.recv(&mut buffer)?;
        buffer.truncate(length);
        Ok(buffer)
    })?;
    let answers = Message::from_vec(&reply)?.answers;
    Ok(answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(ip) => Some(ip.0),
            _ => None,
        })
        .collect())
}
