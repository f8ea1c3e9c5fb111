//! `portolan-probe`: the server in the lab's pods and the client of its checks. Every answer is one line of JSON.

#[cfg(target_os = "linux")]
fn main() -> anyhow::Result<()> {
    linux::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("portolan-probe is part of the lab, which needs Linux");
    std::process::exit(1);
}

#[cfg(target_os = "linux")]
mod linux {
    use anyhow::Result;
    use clap::Parser;
    use portolan_lab::probe::{connect, dns, hold, http, ping, serve};

    /// The lab's server and client.
    #[derive(Parser)]
    #[command(name = "portolan-probe", version)]
    enum Command {
        /// Answers every line, datagram and HTTP request with who it is and whom it saw.
        Serve(serve::Options),
        /// Connects a number of times and counts who answered.
        Connect(connect::Options),
        /// Keeps one connection open and tries it again for every line on standard input.
        Hold(connect::Options),
        /// Fetches one page.
        Http(http::Options),
        /// Sends one echo request.
        Ping(ping::Options),
        /// Asks a DNS server.
        Dns(dns::QueryOptions),
        /// Serves a fixed list of names over UDP.
        DnsServe(dns::ServeOptions),
    }

    pub fn main() -> Result<()> {
        match Command::parse() {
            Command::Serve(options) => serve::run(&options),
            Command::Connect(options) => print(&connect::run(&options)?),
            Command::Hold(options) => hold::run(&options),
            Command::Http(options) => print(&http::get(&options)?),
            Command::Ping(options) => print(&ping::run(&options)),
            Command::Dns(options) => print(&dns::query(&options)?),
            Command::DnsServe(options) => dns::serve(&options),
        }
    }

    fn print(value: &impl serde::Serialize) -> Result<()> {
        println!("{}", serde_json::to_string(value)?);
        Ok(())
    }
}
