//! Maps and programs of one generation, loaded into the kernel.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Context;
use aya::programs::CgroupSockAddr;
use aya::{Ebpf, EbpfLoader};
use portolan_abi::{Counters, global};
use tracing::debug;

use super::elements::{Difference, Elements};
use super::object::object;
use super::pins::Pins;
use super::programs::{Hook, SOCKET_HOOKS};
use super::sys;

/// Maps that remember clients and sockets: they stay when the others are made anew.
const LASTING: [&str; 3] = ["AFFINITY", "REVERSE", "FLOWS"];
/// Maps that the plans fill.
const FILLED: [&str; 7] = [
    "ADDRESSES",
    "FRONTENDS",
    "SETS",
    "BACKENDS",
    "MEMBERS",
    "PORT_COUNTERS",
    "ENDPOINT_COUNTERS",
];

/// How many elements each map holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) addresses: u32,
    pub(crate) frontends: u32,
    pub(crate) sets: u32,
    pub(crate) backends: u32,
    pub(crate) members: u32,
    pub(crate) ports: u32,
    pub(crate) endpoints: u32,
    /// Clients and sockets that are remembered.
    pub(crate) remembered: u32,
}

impl Default for Sizes {
    /// What a node with few Services needs.
    fn default() -> Self {
        Self {
            addresses: 1024,
            frontends: 1024,
            sets: 4096,
            backends: 1024,
            members: 1024,
            ports: 1024,
            endpoints: 1024,
            remembered: 65_536,
        }
    }
}

impl Sizes {
    fn of(&self, map: &str) -> u32 {
        match map {
            "ADDRESSES" => self.addresses,
            "FRONTENDS" => self.frontends,
            "SETS" => self.sets,
            "BACKENDS" => self.backends,
            "MEMBERS" => self.members,
            "PORT_COUNTERS" => self.ports,
            "ENDPOINT_COUNTERS" => self.endpoints,
            _ => self.remembered,
        }
    }
}

/// What is set when programs are loaded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Globals {
    /// Cookie of the node's network namespace; 0 for the machine's first one.
    pub(crate) node_netns: u64,
    /// Programs may name the error of a call.
    pub(crate) can_set_retval: bool,
    /// Pods' sockets are left alone.
    pub(crate) host_only: bool,
}

/// A generation that is loaded.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) generation: u32,
    /// What the programs were loaded with.
    pub(crate) globals: Globals,
    programs: Ebpf,
    maps: BTreeMap<&'static str, OwnedFd>,
}

// === impl Loaded ===

impl Loaded {
    /// Loads the programs with the maps that are pinned for a generation; those that are missing are made. A kernel that
    /// does not let programs name the error of a call (before 5.18) gets programs that do not.
    ///
    /// # Errors
    /// When the kernel refuses a map or a program: the verifier's reason is in the message.
    pub(crate) fn new(pins: &Pins, generation: u32, sizes: &Sizes, globals: Globals) -> anyhow::Result<Self> {
        let plain = Globals {
            can_set_retval: false,
            ..globals
        };
        Self::with(pins, generation, sizes, globals).or_else(|error| {
            if !globals.can_set_retval {
                return Err(error);
            }
            let loaded = Self::with(pins, generation, sizes, plain)?;
            debug!("connections are refused with EPERM: {error:#}");
            Ok(loaded)
        })
    }

    fn with(pins: &Pins, generation: u32, sizes: &Sizes, globals: Globals) -> anyhow::Result<Self> {
        pins.make_generation(generation)
            .with_context(|| format!("cannot make a folder in {}", pins.root().display()))?;
        let (can_set_retval, host_only) = (u8::from(globals.can_set_retval), u8::from(globals.host_only));
        let mut loader = EbpfLoader::new();
        loader
            .override_global(global::NODE_NETNS, &globals.node_netns, true)
            .override_global(global::CAN_SET_RETVAL, &can_set_retval, true)
            .override_global(global::HOST_ONLY, &host_only, true);
        let lasting = LASTING.map(|name| (name, pins.lasting_map(name)));
        let filled = FILLED.map(|name| (name, pins.map(generation, name)));
        for (name, path) in lasting.iter().chain(&filled) {
            loader
                .map_max_entries(name, sizes.of(name))
                .map_pin_path(name, path.clone());
        }
        let mut programs = loader.load(object()?).context("the kernel refused the maps")?;
        let mut maps = BTreeMap::new();
        for (name, path) in lasting.into_iter().chain(filled) {
            let map = sys::open(&path).with_context(|| format!("cannot open the map {}", path.display()))?;
            maps.insert(name, map);
        }
        for hook in &SOCKET_HOOKS {
            let program: &mut CgroupSockAddr = program(&mut programs, hook)?;
            program
                .load()
                .with_context(|| format!("the kernel refused the program {}", hook.name))?;
        }
        Ok(Self {
            generation,
            globals,
            programs,
            maps,
        })
    }

    pub(crate) fn map(&self, name: &'static str) -> io::Result<BorrowedFd<'_>> {
        let map = self.maps.get(name).map(AsFd::as_fd);
        map.ok_or_else(|| io::Error::other(format!("there is no map {name}")))
    }

    /// How large the maps really are: those of an earlier process may have been there.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn sizes(&self) -> io::Result<Sizes> {
        let size = |name| Ok::<u32, io::Error>(sys::map_info(self.map(name)?)?.max_entries);
        Ok(Sizes {
            addresses: size("ADDRESSES")?,
            frontends: size("FRONTENDS")?,
            sets: size("SETS")?,
            backends: size("BACKENDS")?,
            members: size("MEMBERS")?,
            ports: size("PORT_COUNTERS")?,
            endpoints: size("ENDPOINT_COUNTERS")?,
            remembered: size("REVERSE")?,
        })
    }

    /// Lets endpoints begin to count at zero. Those beyond the map's end do so anyway, when larger maps are made.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn reset_endpoints(&self, counters: &[u32]) -> io::Result<()> {
        let processors = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        let zero = vec![Counters::default(); processors];
        let map = self.map("ENDPOINT_COUNTERS")?;
        for counter in counters {
            match sys::update_each(map, *counter, &zero) {
                Err(error) if error.raw_os_error() != Some(libc::E2BIG) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Copies what was counted from the maps of an earlier generation.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn copy_counters(&self, from: &Self, ports: u32, endpoints: u32) -> io::Result<()> {
        let processors = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        for (name, count) in [("PORT_COUNTERS", ports), ("ENDPOINT_COUNTERS", endpoints)] {
            let (old, new) = (from.map(name)?, self.map(name)?);
            for index in 0..count.min(sys::map_info(old)?.max_entries) {
                let each: Vec<Counters> = sys::lookup_each(old, index, processors)?;
                if each.iter().any(|one| *one != Counters::default()) {
                    sys::update_each(new, index, &each)?;
                }
            }
        }
        Ok(())
    }

    /// Makes the links run our programs: one that is pinned is switched over, so that no call is missed; one that is not is
    /// made and pinned.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn attach(&mut self, pins: &Pins, cgroup: &Path) -> anyhow::Result<()> {
        let target = fs::File::open(cgroup).with_context(|| format!("cannot open the cgroup {}", cgroup.display()))?;
        let target_id = target
            .metadata()
            .with_context(|| format!("cannot look at the cgroup {}", cgroup.display()))?
            .ino();
        for hook in &SOCKET_HOOKS {
            let program: &mut CgroupSockAddr = program(&mut self.programs, hook)?;
            let program = program.fd().context("the program is not loaded")?.as_fd();
            let path = pins.link(hook.name);
            let old = match path.exists() {
                true => Some(sys::open(&path).with_context(|| format!("cannot open the link {}", path.display()))?),
                false => None,
            };
            // A link of a cgroup that is gone, or of another one than before, runs nothing here.
            let here = |link: &OwnedFd| sys::link_cgroup(link.as_fd()).is_ok_and(|cgroup| cgroup == target_id);
            if let Some(link) = old.as_ref().filter(|link| here(link)) {
                sys::link_update(link.as_fd(), program)
                    .with_context(|| format!("cannot switch the link {}", hook.name))?;
                continue;
            }
            let link = sys::link_create(program, target.as_fd(), hook.attach_type)
                .with_context(|| format!("cannot attach {} to {}", hook.name, cgroup.display()))?;
            if old.is_some() {
                debug!(link = hook.name, "the link is of another cgroup; it is replaced");
                fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
            sys::pin(link.as_fd(), &path).with_context(|| format!("cannot pin {}", path.display()))?;
        }
        Ok(())
    }

    /// Reads what the plans' maps hold.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn read(&self) -> io::Result<Elements> {
        let mut elements = Elements {
            addresses: sys::read_all(self.map("ADDRESSES")?)?.into_iter().collect(),
            frontends: sys::read_all(self.map("FRONTENDS")?)?.into_iter().collect(),
            sets: sys::read_all(self.map("SETS")?)?.into_iter().collect(),
            backends: sys::read_all(self.map("BACKENDS")?)?.into_iter().collect(),
            members: sys::read_all(self.map("MEMBERS")?)?.into_iter().collect(),
        };
        elements.sets.retain(|_, set| set.count > 0);
        Ok(elements)
    }

    /// Writes what differs, in the order that readers need.
    ///
    /// # Errors
    /// The kernel's. What was written before stays.
    pub(crate) fn write(&self, difference: &Difference) -> io::Result<()> {
        sys::update(self.map("MEMBERS")?, &difference.members)?;
        sys::update(self.map("BACKENDS")?, &difference.backends)?;
        sys::update(self.map("SETS")?, &difference.grown)?;
        sys::update(self.map("FRONTENDS")?, &difference.frontends)?;
        sys::update(self.map("ADDRESSES")?, &difference.addresses)?;
        sys::delete(self.map("ADDRESSES")?, &difference.gone_addresses)?;
        sys::delete(self.map("FRONTENDS")?, &difference.gone_frontends)?;
        sys::update(self.map("SETS")?, &difference.shrunk)?;
        sys::delete(self.map("BACKENDS")?, &difference.gone_backends)?;
        sys::delete(self.map("MEMBERS")?, &difference.gone_members)
    }
}

fn program<'a>(programs: &'a mut Ebpf, hook: &Hook) -> anyhow::Result<&'a mut CgroupSockAddr> {
    let program = programs
        .program_mut(hook.name)
        .with_context(|| format!("there is no program {}", hook.name))?;
    program
        .try_into()
        .with_context(|| format!("{} is another kind of program", hook.name))
}
