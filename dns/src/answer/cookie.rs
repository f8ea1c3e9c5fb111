//! Server cookies (RFC 7873) in the form that all servers behind one address can check and make (RFC 9018).
//!
//! A client that knows our cookie takes no answer without it, so nobody beside the path can forge one.

use std::net::IpAddr;

/// A server cookie: version, three octets of nothing, the time, and a hash over these, the client's cookie and address.
pub fn server_cookie(secret: &[u8; 16], client: &[u8; 8], address: IpAddr, now: u32) -> [u8; 16] {
    let mut cookie = [0; 16];
    cookie[0] = 1;
    cookie[4..8].copy_from_slice(&now.to_be_bytes());
    let mut text = [0; 32];
    text[..8].copy_from_slice(client);
    text[8..16].copy_from_slice(&cookie[..8]);
    let length = match address.to_canonical() {
        IpAddr::V4(ip) => {
            text[16..20].copy_from_slice(&ip.octets());
            20
        }
        IpAddr::V6(ip) => {
            text[16..32].copy_from_slice(&ip.octets());
            32
        }
    };
    cookie[8..].copy_from_slice(&siphash(secret, &text[..length]).to_le_bytes());
    cookie
}

/// SipHash-2-4 (Aumasson and Bernstein, 2012).
fn siphash(key: &[u8; 16], text: &[u8]) -> u64 {
    let word = |bytes: &[u8]| {
        let mut word = [0; 8];
        for (to, from) in word.iter_mut().zip(bytes) {
            *to = *from;
        }
        u64::from_le_bytes(word)
    };
    let (k0, k1) = (word(&key[..8]), word(&key[8..]));
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    let mut chunks = text.chunks_exact(8);
    for chunk in &mut chunks {
        absorb(&mut v, word(chunk));
    }
    absorb(&mut v, word(chunks.remainder()) | (text.len() as u64) << 56);
    v[2] ^= 0xff;
    for _ in 0..4 {
        round(&mut v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

fn absorb(v: &mut [u64; 4], word: u64) {
    v[3] ^= word;
    round(v);
    round(v);
    v[0] ^= word;
}

fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 9018, appendix A.
    #[test]
    fn cookies_are_those_of_the_rfc() {
        let hex = |text: &str| -> Vec<u8> {
            let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap_or_default();
            (0..text.len()).step_by(2).map(digit).collect()
        };
        let check = |secret: &str, client: &str, address: &str, now: u32, expect: &str| {
            let secret: [u8; 16] = hex(secret).try_into().unwrap_or_default();
            let client: [u8; 8] = hex(client).try_into().unwrap_or_default();
            let address = address.parse().unwrap_or(IpAddr::from([0; 4]));
            assert_eq!(
                server_cookie(&secret, &client, address, now)[..],
                hex(expect),
                "{address}"
            );
        };
        check(
            "e5e973e5a6b2a43f48e7dc849e37bfcf",
            "2464c4abcf10c957",
            "198.51.100.100",
            1_559_731_985,
            "010000005cf79f111f8130c3eee29480",
        );
        check(
            "445536bcd2513298075a5d379663c962",
            "22681ab97d52c298",
            "2001:db8:220:1:59de:d0f4:8769:82b8",
            1_559_741_961,
            "010000005cf7c609a6bb79d16625507a",
        );
    }
}
