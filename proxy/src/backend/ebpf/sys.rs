//! The bpf system call: maps as bytes, links, pins. What a kernel object means is decided elsewhere.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use portolan_abi::Plain;

/// Commands of the system call (`enum bpf_cmd`).
mod command {
    pub const MAP_LOOKUP_ELEM: i32 = 1;
    pub const MAP_UPDATE_ELEM: i32 = 2;
    pub const MAP_DELETE_ELEM: i32 = 3;
    pub const OBJ_PIN: i32 = 6;
    pub const OBJ_GET: i32 = 7;
    pub const OBJ_GET_INFO_BY_FD: i32 = 15;
    pub const MAP_LOOKUP_BATCH: i32 = 24;
    pub const MAP_UPDATE_BATCH: i32 = 26;
    pub const LINK_CREATE: i32 = 28;
    pub const LINK_UPDATE: i32 = 29;
}

/// Elements that are handed to the kernel in one call.
const BATCH: usize = 4096;

#[repr(C)]
#[derive(Default)]
struct Element {
    map: u32,
    zero: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

#[repr(C)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
struct Info {
    fd: u32,
    length: u32,
    info: u64,
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    more: [u64; 2],
}

#[repr(C)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// What the kernel tells of a map (the head of `struct bpf_map_info`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MapInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
}

fn bpf<A>(command: i32, attributes: &mut A) -> io::Result<i32> {
    // SAFETY: the kernel reads and writes at most `size` bytes of the attributes; what these point to is kept alive by the
    // callers below.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            u32::try_from(size_of::<A>()).unwrap_or(u32::MAX),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(i32::try_from(result).unwrap_or(i32::MAX))
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

fn address<T: ?Sized>(place: &T) -> u64 {
    std::ptr::from_ref(place).cast::<u8>() as u64
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just opened it for us, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Writes elements, in the order given.
///
/// # Errors
/// The kernel's: E2BIG when the map is full, ENOMEM. What was written before stays.
pub(crate) fn update<K: Plain, V: Plain>(map: BorrowedFd<'_>, elements: &[(K, V)]) -> io::Result<()> {
    for some in elements.chunks(BATCH) {
        if let [(key, value)] = some {
            let mut one = Element {
                map: number(map),
                key: address(key.bytes()),
                value: address(value.bytes()),
                ..Element::default()
            };
            bpf(command::MAP_UPDATE_ELEM, &mut one)?;
            continue;
        }
        let keys: Vec<u8> = some.iter().flat_map(|(key, _)| key.bytes().iter().copied()).collect();
        let values: Vec<u8> = some
            .iter()
            .flat_map(|(_, value)| value.bytes().iter().copied())
            .collect();
        let mut batch = Batch {
            keys: address(&*keys),
            values: address(&*values),
            count: u32::try_from(some.len()).unwrap_or(u32::MAX),
            map: number(map),
            ..Batch::default()
        };
        bpf(command::MAP_UPDATE_BATCH, &mut batch)?;
    }
    Ok(())
}

/// Removes elements. One that is not there is no error.
///
/// # Errors
/// The kernel's.
pub(crate) fn delete<K: Plain>(map: BorrowedFd<'_>, keys: &[K]) -> io::Result<()> {
    for key in keys {
        let mut one = Element {
            map: number(map),
            key: address(key.bytes()),
            ..Element::default()
        };
        match bpf(command::MAP_DELETE_ELEM, &mut one) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Reads one element.
///
/// # Errors
/// The kernel's, but for a missing element.
pub(crate) fn lookup<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = vec![0_u8; size_of::<V>()];
    let mut one = Element {
        map: number(map),
        key: address(key.bytes()),
        value: value.as_mut_ptr() as u64,
        ..Element::default()
    };
    match bpf(command::MAP_LOOKUP_ELEM, &mut one) {
        Ok(_) => Ok(V::from_bytes(&value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads one element of a per-processor array: one value for each possible processor.
///
/// # Errors
/// The kernel's, but for a missing element.
pub(crate) fn lookup_each<V: Plain>(map: BorrowedFd<'_>, index: u32, processors: usize) -> io::Result<Vec<V>> {
    let size = size_of::<V>().next_multiple_of(8);
    let mut values = vec![0_u8; size * processors];
    let mut one = Element {
        map: number(map),
        key: address(index.bytes()),
        value: values.as_mut_ptr() as u64,
        ..Element::default()
    };
    bpf(command::MAP_LOOKUP_ELEM, &mut one)?;
    let each = values
        .chunks(size)
        .filter_map(|bytes| V::from_bytes(bytes.get(..size_of::<V>())?));
    Ok(each.collect())
}

/// Writes one element of a per-processor array.
///
/// # Errors
/// The kernel's.
pub(crate) fn update_each<V: Plain>(map: BorrowedFd<'_>, index: u32, each: &[V]) -> io::Result<()> {
    let size = size_of::<V>().next_multiple_of(8);
    let mut values = vec![0_u8; size * each.len()];
    for (place, value) in values.chunks_mut(size).zip(each) {
        place[..size_of::<V>()].copy_from_slice(value.bytes());
    }
    let mut one = Element {
        map: number(map),
        key: address(index.bytes()),
        value: address(&*values),
        ..Element::default()
    };
    bpf(command::MAP_UPDATE_ELEM, &mut one).map(drop)
}

/// Reads a whole hash map or array.
///
/// # Errors
/// The kernel's.
pub(crate) fn read_all<K: Plain, V: Plain>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    let mut found = Vec::new();
    let mut position = [0_u64; 4];
    let mut first = true;
    // A batch holds whole buckets: it grows when one bucket does not fit.
    let mut room = BATCH;
    loop {
        let mut keys = vec![0_u8; room * size_of::<K>()];
        let mut values = vec![0_u8; room * size_of::<V>()];
        let start = position;
        let mut batch = Batch {
            in_batch: if first { 0 } else { address(&start) },
            out_batch: position.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: u32::try_from(room).unwrap_or(u32::MAX),
            map: number(map),
            ..Batch::default()
        };
        let result = bpf(command::MAP_LOOKUP_BATCH, &mut batch);
        let end = match result {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                room *= 2;
                position = start;
                continue;
            }
            Err(error) => return Err(error),
        };
        let count = batch.count as usize;
        let keys = keys.chunks(size_of::<K>()).filter_map(K::from_bytes);
        let values = values.chunks(size_of::<V>()).filter_map(V::from_bytes);
        found.extend(keys.zip(values).take(count));
        if end {
            return Ok(found);
        }
        first = false;
    }
}

/// What the kernel tells of a map.
///
/// # Errors
/// The kernel's.
pub(crate) fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut info = MapInfo::default();
    let mut ask = Info {
        fd: number(map),
        length: u32::try_from(size_of::<MapInfo>()).unwrap_or(0),
        info: std::ptr::from_mut(&mut info) as u64,
    };
    bpf(command::OBJ_GET_INFO_BY_FD, &mut ask)?;
    Ok(info)
}

/// The head of `struct bpf_link_info`, as far as a cgroup's link fills it.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    zero: u32,
    cgroup: u64,
    attach_type: u32,
    zero_too: u32,
}

/// The cgroup that a link attaches to: the inode number of its directory; 0 when that is gone.
///
/// # Errors
/// The kernel's.
pub(crate) fn link_cgroup(link: BorrowedFd<'_>) -> io::Result<u64> {
    let mut info = LinkInfo::default();
    let mut ask = Info {
        fd: number(link),
        length: u32::try_from(size_of::<LinkInfo>()).unwrap_or(0),
        info: std::ptr::from_mut(&mut info) as u64,
    };
    bpf(command::OBJ_GET_INFO_BY_FD, &mut ask)?;
    Ok(info.cgroup)
}

/// Attaches a program to a cgroup. The attachment lasts as long as the link: while it is open or pinned.
///
/// # Errors
/// The kernel's.
pub(crate) fn link_create(program: BorrowedFd<'_>, target: BorrowedFd<'_>, attach_type: u32) -> io::Result<OwnedFd> {
    let mut create = LinkCreate {
        program: number(program),
        target: number(target),
        attach_type,
        flags: 0,
        more: [0; 2],
    };
    bpf(command::LINK_CREATE, &mut create).map(owned)
}

/// Replaces the program of a link: each call of it runs the old one or the new one.
///
/// # Errors
/// The kernel's.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut update = LinkUpdate {
        link: number(link),
        program: number(program),
        flags: 0,
        old_program: 0,
    };
    bpf(command::LINK_UPDATE, &mut update).map(drop)
}

/// Pins a kernel object: it lasts as long as the file.
///
/// # Errors
/// The kernel's.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut pin = Object {
        path: address(path.as_bytes_with_nul()),
        fd: number(object),
        flags: 0,
    };
    bpf(command::OBJ_PIN, &mut pin).map(drop)
}

/// Opens a pinned object.
///
/// # Errors
/// The kernel's.
pub(crate) fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut get = Object {
        path: address(path.as_bytes_with_nul()),
        fd: 0,
        flags: 0,
    };
    bpf(command::OBJ_GET, &mut get).map(owned)
}
