//! The PROXY protocol's binary header, version 2 (haproxy's doc/proxy-protocol.txt, section 2.2): tells a backend who
//! its client is and which address the client asked for.

use std::net::SocketAddr;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const VERSION_PROXY: u8 = 0x21;
/// AF_INET, SOCK_STREAM.
const TCP4: u8 = 0x11;
/// AF_INET6, SOCK_STREAM.
const TCP6: u8 = 0x21;

/// The header for a TCP connection from `client` to `frontend`. Both have the same family: they are two ends of one
/// connection.
pub(super) fn header(client: SocketAddr, frontend: SocketAddr) -> Vec<u8> {
    let mut addresses = Vec::with_capacity(36);
    let family = match (client, frontend) {
        (SocketAddr::V4(client), SocketAddr::V4(frontend)) => {
            addresses.extend(client.ip().octets());
            addresses.extend(frontend.ip().octets());
            TCP4
        }
        (client, frontend) => {
            addresses.extend(v6(client));
            addresses.extend(v6(frontend));
            TCP6
        }
    };
    addresses.extend(client.port().to_be_bytes());
    addresses.extend(frontend.port().to_be_bytes());
    let length = if family == TCP4 { 12_u16 } else { 36 };

    let mut header = Vec::with_capacity(52);
    header.extend(SIGNATURE);
    header.extend([VERSION_PROXY, family]);
    header.extend(length.to_be_bytes());
    header.extend(addresses);
    header
}

fn v6(address: SocketAddr) -> [u8; 16] {
    match address {
        SocketAddr::V4(v4) => v4.ip().to_ipv6_mapped().octets(),
        SocketAddr::V6(v6) => v6.ip().octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(client: &str, frontend: &str, expect: &str) {
        let header = header(client.parse().unwrap(), frontend.parse().unwrap());
        let hex: String = header.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expect.replace(' ', ""));
    }

    #[test]
    fn headers_are_those_of_the_specification() {
        check(
            "198.51.100.7:40000",
            "10.96.0.10:80",
            "0d0a0d0a000d0a515549540a 21 11 000c c6336407 0a60000a 9c40 0050",
        );
        check(
            "[fd00:51::7]:40000",
            "[fd00:96::a]:443",
            "0d0a0d0a000d0a515549540a 21 21 0024 fd000051000000000000000000000007 fd00009600000000000000000000000a 9c40 01bb",
        );
    }
}
