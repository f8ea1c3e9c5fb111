//! A client that keeps one connection open and tries it again whenever it is told to.
//!
//! For every line on standard input it makes one exchange over the same connection (or from the same UDP port) and prints
//! one line of JSON: the answer or the failure. It prints the first one unasked.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::connect::{Options, exchange_datagram, exchange_line, resolve, tcp_stream, udp_socket};
use super::{Failure, Hello};

/// What one exchange over the held connection came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exchange {
    /// The server answered.
    Answer(Hello),
    /// It did not.
    Failure(Failure),
}

/// Connects, then serves standard input until it is closed.
///
/// # Errors
/// When standard output is gone.
pub fn run(options: &Options) -> Result<()> {
    let timeout = Duration::from_millis(options.timeout_ms);
    let start = Instant::now();
    let opened = resolve(&options.target, options.family).and_then(|target| {
        Ok(if options.udp {
            Held::Udp(udp_socket(target, options)?)
        } else {
            Held::Tcp(BufReader::new(tcp_stream(target, options, timeout)?))
        })
    });
    let mut held = match opened {
        Ok(held) => held,
        Err(error) => return say(&Exchange::Failure(failure(&error, start))),
    };
    say(&held.exchange(timeout, options.size))?;
    for line in io::stdin().lock().lines() {
        line?;
        say(&held.exchange(timeout, options.size))?;
    }
    Ok(())
}

enum Held {
    Tcp(BufReader<std::net::TcpStream>),
    Udp(std::net::UdpSocket),
}

// === impl Held ===

impl Held {
    fn exchange(&mut self, timeout: Duration, size: usize) -> Exchange {
        let start = Instant::now();
        let answer = match self {
            Self::Tcp(stream) => exchange_line(stream, size),
            Self::Udp(socket) => exchange_datagram(socket, timeout, size),
        };
        answer.map_or_else(|error| Exchange::Failure(failure(&error, start)), Exchange::Answer)
    }
}

fn failure(error: &io::Error, start: Instant) -> Failure {
    Failure::new(error, u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX))
}

fn say(exchange: &Exchange) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(exchange)?)?;
    out.flush()?;
    Ok(())
}
