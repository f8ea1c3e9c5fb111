//! What only system calls tell: chains of the older iptables interface, and names of BPF programs.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use socket2::{Domain, Protocol, Socket, Type};

/// `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES` of `linux/netfilter_ipv4/ip_tables.h`; the same in `ip6_tables.h`.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// `XT_TABLE_MAXNAMELEN`.
const NAME: usize = 32;
/// Length of `struct ipt_getinfo`, whose last field is the table's size.
const INFO: usize = 84;
/// Where `struct ipt_get_entries` has its entries.
const ENTRIES: usize = 40;
/// The largest table that is looked at.
const LARGEST: usize = 256 << 20;

/// Whether the table `nat` of the older interface contains this text, which is how the name of a chain stands in it.
pub(super) fn legacy_nat_has(v6: bool, text: &[u8]) -> io::Result<bool> {
    let (domain, level) = match v6 {
        false => (Domain::IPV4, libc::IPPROTO_IP),
        true => (Domain::IPV6, libc::IPPROTO_IPV6),
    };
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
    let mut info = named(INFO);
    get(&socket, level, GET_INFO, &mut info)?;
    let size = info.last_chunk::<4>().map_or(0, |size| u32::from_ne_bytes(*size));
    let length = usize::try_from(size).unwrap_or(LARGEST).min(LARGEST);
    let mut entries = named(ENTRIES + length);
    if let Some(place) = entries.get_mut(NAME..NAME + 4) {
        place.copy_from_slice(&size.to_ne_bytes());
    }
    get(&socket, level, GET_ENTRIES, &mut entries)?;
    Ok(entries.windows(text.len()).any(|window| window == text))
}

/// A structure of this length that begins with the table's name.
fn named(length: usize) -> Vec<u8> {
    let mut bytes = b"nat".to_vec();
    bytes.resize(length, 0);
    bytes
}

fn get(socket: &Socket, level: libc::c_int, option: libc::c_int, bytes: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(bytes.len()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open; the kernel reads and writes at most `length` bytes of `bytes`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            bytes.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `bpf` commands and the place of `name` in `struct bpf_prog_info` (`linux/bpf.h`).
const PROG_GET_NEXT_ID: libc::c_long = 11;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const PROGRAM_NAME: std::ops::Range<usize> = 64..80;
/// Programs that are looked at.
const MOST: usize = 10_000;

/// Names of all BPF programs that are loaded on this machine.
pub(super) fn bpf_program_names() -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    let mut id = 0;
    for _ in 0..MOST {
        let mut next = [id, 0, 0];
        match bpf(PROG_GET_NEXT_ID, &mut next) {
            Ok(_) => id = next[1],
            // That was the last one.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
            Err(error) => return Err(error),
        }
        // It may be gone meanwhile.
        let Ok(program) = bpf(PROG_GET_FD_BY_ID, &mut [id, 0, 0]) else {
            continue;
        };
        // SAFETY: the kernel has just made this descriptor for us.
        let program = unsafe { OwnedFd::from_raw_fd(program) };
        names.extend(name(&program));
    }
    Ok(names)
}

fn name(program: &OwnedFd) -> Option<String> {
    let mut info = [0u8; PROGRAM_NAME.end];
    let place = u64::try_from(info.as_mut_ptr().expose_provenance()).ok()?.to_ne_bytes();
    let [a, b, c, d, e, f, g, h] = place;
    let (low, high) = (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]));
    let length = u32::try_from(info.len()).ok()?;
    let descriptor = u32::try_from(program.as_raw_fd()).ok()?;
    bpf(OBJ_GET_INFO_BY_FD, &mut [descriptor, length, low, high]).ok()?;
    let name = info.get(PROGRAM_NAME)?;
    let name = name.split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(name).into_owned())
}

/// Calls `bpf` with the first words of `union bpf_attr`. Those that hold an address are written by the caller, who keeps
/// what it points to.
fn bpf<const N: usize>(command: libc::c_long, words: &mut [u32; N]) -> io::Result<libc::c_int> {
    // SAFETY: the kernel reads and writes `size_of_val(words)` bytes of `words`, and for OBJ_GET_INFO_BY_FD at most as many
    // bytes of `info` as `words` says; both live until the call returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, words.as_mut_ptr(), size_of_val(words)) };
    match libc::c_int::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
