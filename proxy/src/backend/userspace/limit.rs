//! How many files this process may have open: each relayed connection costs two of them.
//!
//! The only system-specific code of the userspace backend.

#[cfg(unix)]
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit as far as it may be raised without privilege, and says what it is then. `None` means there is none.
#[cfg(unix)]
pub(super) fn raise() -> Option<u64> {
    /// macOS allows no more than its OPEN_MAX, whatever its hard limit says.
    const MACOS_OPEN_MAX: u64 = 10_240;
    let limit = getrlimit(Resource::Nofile);
    let mut wanted = limit.maximum;
    if cfg!(target_os = "macos") {
        wanted = Some(wanted.map_or(MACOS_OPEN_MAX, |maximum| maximum.min(MACOS_OPEN_MAX)));
    }
    if let (Some(current), Some(wanted)) = (limit.current, wanted)
        && current >= wanted
    {
        return Some(current);
    }
    let raised = Rlimit {
        current: wanted,
        maximum: limit.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => wanted,
        Err(_) => limit.current,
    }
}

/// Windows limits handles by memory only.
#[cfg(not(unix))]
pub(super) fn raise() -> Option<u64> {
    None
}
