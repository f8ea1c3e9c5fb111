//! Where things are pinned, so that they outlive the daemon.
//!
//! ```text
//! DIR/links/HOOK        one link a program: it names the program that runs, of whatever build
//! DIR/sLAYOUT/MAP       maps that remember clients and sockets
//! DIR/vLAYOUT/gN/MAP    maps that the plans fill; N grows when they become too small
//! DIR/probe-PID         the same for a probe, while it lasts
//! ```
//!
//! The maps of generation N are in use as soon as the links name programs that were loaded with them. Whatever is not in use
//! is removed after that, so that a daemon that is killed in between leaves at most something superfluous.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use portolan_abi::{LASTING_LAYOUT, LAYOUT};

const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
/// Where distributions mount it.
const USUAL: &str = "/sys/fs/bpf";
/// How the folder of a probe begins.
const PROBE: &str = "probe-";
/// No probe takes longer: what is older was left by a process that was killed.
const LONGEST_PROBE: Duration = Duration::from_secs(60);

/// The folder of one node's pins.
#[derive(Clone, Debug)]
pub(crate) struct Pins {
    root: PathBuf,
}

// === impl Pins ===

impl Pins {
    /// Opens the folder; mounts a BPF file system where there is none yet.
    ///
    /// # Errors
    /// The system's: without CAP_SYS_ADMIN, or in a kernel without BPF.
    pub(crate) fn open(root: &Path) -> io::Result<Self> {
        if !is_bpffs(root) {
            if root.starts_with(USUAL) && !is_bpffs(Path::new(USUAL)) {
                mount(Path::new(USUAL))?;
            } else if !root.starts_with(USUAL) {
                fs::create_dir_all(root)?;
                if !is_bpffs(root) {
                    mount(root)?;
                }
            }
        }
        let pins = Self { root: root.to_owned() };
        fs::create_dir_all(pins.links())?;
        fs::create_dir_all(pins.layout())?;
        fs::create_dir_all(pins.lasting())?;
        Ok(pins)
    }

    /// The folder, if it is there: nothing is made or mounted.
    pub(crate) fn existing(root: &Path) -> Option<Self> {
        (root.is_dir() && is_bpffs(root)).then(|| Self { root: root.to_owned() })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A folder for a probe's own pins. What killed probes left, links included, is removed.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn probe(&self) -> io::Result<Self> {
        self.remove_probes(LONGEST_PROBE);
        Self::open(&self.root.join(format!("{PROBE}{}", std::process::id())))
    }

    fn remove_probes(&self, older_than: Duration) {
        let is_probe = |name: &String| name.starts_with(PROBE);
        for name in names(&self.root).into_iter().filter(is_probe) {
            let root = self.root.join(name);
            let made = fs::metadata(&root).and_then(|folder| folder.modified());
            if made.is_ok_and(|made| made.elapsed().unwrap_or_default() >= older_than) {
                Self { root }.remove_all();
            }
        }
    }

    fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    pub(crate) fn link(&self, hook: &str) -> PathBuf {
        self.links().join(hook)
    }

    /// Names of the hooks that have a link.
    pub(crate) fn linked(&self) -> Vec<String> {
        names(&self.links())
    }

    fn layout(&self) -> PathBuf {
        self.root.join(format!("v{LAYOUT}"))
    }

    /// A map that stays when others are made anew.
    pub(crate) fn lasting_map(&self, name: &str) -> PathBuf {
        self.lasting().join(name)
    }

    fn lasting(&self) -> PathBuf {
        self.root.join(format!("s{LASTING_LAYOUT}"))
    }

    /// A map of a generation.
    pub(crate) fn map(&self, generation: u32, name: &str) -> PathBuf {
        self.generation(generation).join(name)
    }

    fn generation(&self, number: u32) -> PathBuf {
        self.layout().join(format!("g{number}"))
    }

    /// Makes the folder of a generation, and those beside it where somebody has taken them away since they were opened.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn make_generation(&self, number: u32) -> io::Result<()> {
        fs::create_dir_all(self.links())?;
        fs::create_dir_all(self.lasting())?;
        fs::create_dir_all(self.generation(number))
    }

    /// The generations of our layout, oldest first.
    pub(crate) fn generations(&self) -> Vec<u32> {
        let mut found: Vec<u32> = names(&self.layout())
            .iter()
            .filter_map(|name| name.strip_prefix('g')?.parse().ok())
            .collect();
        found.sort_unstable();
        found
    }

    /// Removes a generation that is not in use.
    pub(crate) fn remove_generation(&self, number: u32) {
        remove(&self.generation(number));
    }

    /// Removes every generation but one, and everything of other layouts.
    pub(crate) fn keep_only(&self, generation: u32) {
        for other in self.generations() {
            if other != generation {
                remove(&self.generation(other));
            }
        }
        for folder in self.layouts() {
            if folder != self.layout() && folder != self.lasting() {
                remove(&folder);
            }
        }
    }

    /// The folders of maps, of whatever layout. A kernel may put files of its own into a BPF file system.
    fn layouts(&self) -> impl Iterator<Item = PathBuf> {
        let is_layout = |name: &String| {
            let number = name.strip_prefix(['v', 's']);
            number.is_some_and(|number| number.parse::<u32>().is_ok())
        };
        names(&self.root)
            .into_iter()
            .filter(is_layout)
            .map(|name| self.root.join(name))
    }

    /// Removes everything: programs end with their links, maps with their last user. Yields how many links there were.
    pub(crate) fn remove_all(&self) -> usize {
        // Links first: a program never runs without its maps. Who rewrites addresses goes before who puts them back.
        let mut names = self.linked();
        let links = names.len();
        names.sort_by_key(|name| !name.starts_with("connect") && !name.starts_with("sendmsg"));
        names.iter().for_each(|name| remove(&self.link(name)));
        remove(&self.links());
        self.layouts().for_each(|folder| remove(&folder));
        self.remove_probes(Duration::ZERO);
        // A folder that is a mount of its own cannot be removed, and is not ours to unmount.
        let _ = fs::remove_dir(&self.root);
        links
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

fn remove(path: &Path) {
    let removed = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    if let Err(error) = removed
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove what is pinned there");
    }
}

fn is_bpffs(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
        return false;
    };
    // SAFETY: statfs is plain data, filled by the call; the path is a C string.
    unsafe {
        let mut found: libc::statfs = std::mem::zeroed();
        libc::statfs(path.as_ptr(), &raw mut found) == 0 && found.f_type == BPF_FS_MAGIC
    }
}

fn mount(at: &Path) -> io::Result<()> {
    let path = CString::new(at.as_os_str().as_bytes())?;
    // SAFETY: C strings that live as long as the call.
    let result = unsafe {
        libc::mount(
            c"bpf".as_ptr(),
            path.as_ptr(),
            c"bpf".as_ptr(),
            0,
            c"mode=0700".as_ptr().cast(),
        )
    };
    if result < 0 {
        let error = io::Error::last_os_error();
        return Err(io::Error::new(
            error.kind(),
            format!("cannot mount a BPF file system at {}: {error}", at.display()),
        ));
    }
    tracing::info!(at = %at.display(), "mounted a BPF file system");
    Ok(())
}
