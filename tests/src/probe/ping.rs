//! One ICMP echo request over IPv4 or IPv6, as `ping -c 1` sends it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::{Failure, Report};

/// Whom to ask.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The address.
    pub address: IpAddr,
    /// How long it may take, in milliseconds.
    #[arg(long, default_value_t = 1500)]
    pub timeout_ms: u64,
}

/// Sends the request; a report with one answer, under the address's own name, means that the reply came.
pub fn run(options: &Options) -> Report {
    let start = Instant::now();
    let mut report = Report {
        attempts: 1,
        ..Report::default()
    };
    match echo(options) {
        Ok(()) => {
            report.answers.insert(options.address.to_string(), 1);
        }
        Err(error) => {
            let millis = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
            report.failures.push(Failure::new(&error, millis));
        }
    }
    report
}

fn echo(options: &Options) -> io::Result<()> {
    let (domain, protocol, request, reply) = match options.address {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    // A connected socket is told of errors that come back.
    socket.connect(&SocketAddr::new(options.address, 0).into())?;
    let id = u16::try_from(std::process::id() & 0xffff)
        .unwrap_or_default()
        .to_be_bytes();
    let mut packet = [request, 0, 0, 0, id[0], id[1], 0, 1];
    // The kernel fills in the checksum of ICMPv6 itself; for ICMPv4 it overwrites nothing.
    if options.address.is_ipv4() {
        let sum: u32 = packet
            .chunks(2)
            .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
            .sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        let check = !u16::try_from(folded & 0xffff).unwrap_or_default();
        [packet[2], packet[3]] = check.to_be_bytes();
    }
    socket.send(&packet)?;
    let deadline = Instant::now() + Duration::from_millis(options.timeout_ms);
    let stream: std::net::UdpSocket = socket.into();
    let mut buffer = [0; 512];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let length = stream.recv(&mut buffer)?;
        // A raw IPv4 socket also hands over the IP header, whose length is in its first byte.
        let header = if options.address.is_ipv4() {
            usize::from(buffer[0] & 0x0f) * 4
        } else {
            0
        };
        if let Some([kind, _, _, _, a, b, ..]) = buffer.get(header..length)
            && (*kind, [*a, *b]) == (reply, id)
        {
            return Ok(());
        }
    }
}
