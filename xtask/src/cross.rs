//! `cargo xtask cross`: the userspace backend is real on Windows, and its code is sound for macOS.
//!
//! The Windows programs are built with everything they depend on, and the demo on loopback runs under Wine: real relays
//! and real answers. For macOS the compiler checks every type, without linking. Both need a standard library for the target: one that rustup installed
//! (`rustup target add x86_64-pc-windows-gnu aarch64-apple-darwin`), or the library's source, from which cargo compiles
//! it (`rustup component add rust-src`, or Debian's rustc-web, cargo-web and rust-web-src).

mod relay;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::command::{RUST, output, run, target_dir, version, which, workspace};
use crate::demo::fresh_copy;
use crate::suite::Tally;

/// What a developer on such a system runs: the daemons, and the demo on loopback that needs nothing else.
const PROGRAMS: [&str; 3] = ["portolan-proxy", "portolan-dns", "portolan-demo"];
const PACKAGES: [&str; 3] = ["portolan-proxy", "portolan-dns", "portolan-lab"];

/// A system other than Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// x86_64-pc-windows-gnu: build, and run the demo on loopback under Wine
    Windows,
    /// aarch64-apple-darwin: type-check
    Macos,
}

impl Target {
    fn triple(self) -> &'static str {
        match self {
            Target::Windows => "x86_64-pc-windows-gnu",
            Target::Macos => "aarch64-apple-darwin",
        }
    }
}

/// Arguments of `cargo xtask cross`.
#[derive(clap::Args, Default)]
pub struct Args {
    /// Only this system; both when not given
    target: Option<Target>,
}

/// A compiler that can compile for a target.
pub struct Toolchain {
    /// The compiler, named in the doctor's table.
    pub rustc: PathBuf,
    cargo: PathBuf,
    /// Whether cargo has to compile the standard library first.
    build_std: bool,
}

/// Runs the command; each target counts as one check.
pub fn main(args: &Args) -> Result<Tally> {
    let targets = args
        .target
        .map_or_else(|| Target::value_variants().to_vec(), |one| vec![one]);
    let mut tally = Tally::default();
    for target in targets {
        let done = match target {
            Target::Windows => windows(),
            Target::Macos => macos(),
        };
        tally.count(&done);
        if let Err(error) = done {
            println!("cross: {}: {error:#}", target.triple());
        }
    }
    Ok(tally)
}

/// A toolchain for this target: the one that runs this program, or the distribution's in /usr/bin.
pub fn toolchain(target: Target) -> Result<Toolchain> {
    let own = which("rustc").zip(which("cargo"));
    let distribution = Some((PathBuf::from("/usr/bin/rustc"), PathBuf::from("/usr/bin/cargo")));
    let mut reasons = Vec::new();
    for (rustc, cargo) in [own, distribution].into_iter().flatten() {
        match examine(&rustc, target) {
            Ok(build_std) => {
                return Ok(Toolchain {
                    rustc,
                    cargo,
                    build_std,
                });
            }
            Err(error) => reasons.push(format!("{}: {error:#}", rustc.display())),
        }
    }
    reasons.dedup();
    bail!("no rustc for {}: {}", target.triple(), reasons.join("; "))
}

/// Whether this rustc needs the standard library compiled first; an error when it cannot be used.
fn examine(rustc: &Path, target: Target) -> Result<bool> {
    version(Command::new(rustc).arg("--version"), RUST)?;
    let sysroot = output(Command::new(rustc).args(["--print", "sysroot"]))?;
    let rustlib = Path::new(sysroot.trim()).join("lib/rustlib");
    let installed = rustlib.join(target.triple()).join("lib").is_dir();
    if !installed && !rustlib.join("src/rust/library/std/Cargo.toml").is_file() {
        bail!("no standard library for it, and no source of one");
    }
    Ok(!installed)
}

impl Toolchain {
    /// `cargo SUBCOMMAND` for this target, in a target directory of its own: another compiler's output beside ours
    /// would make both compile everything again each time.
    fn cargo(&self, subcommand: &str, target: Target) -> Command {
        let mut command = Command::new(&self.cargo);
        command.current_dir(workspace()).stdin(Stdio::null());
        // What the cargo and rustup above us set is meant for their own toolchain.
        command
            .env_remove("CARGO")
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("RUSTC_WORKSPACE_WRAPPER");
        command.env("RUSTC", &self.rustc).arg(subcommand);
        if self.build_std {
            command.env("RUSTC_BOOTSTRAP", "1").arg("-Zbuild-std=std,panic_abort");
        }
        command
            .args(["--target", target.triple()])
            .arg("--target-dir")
            .arg(cross_dir());
        command
    }
}

fn cross_dir() -> PathBuf {
    target_dir().join("cross")
}

fn windows() -> Result<()> {
    let mut build = toolchain(Target::Windows)?.cargo("build", Target::Windows);
    build.env("CARGO_TARGET_X86_64_PC_WINDOWS_GNU_LINKER", "x86_64-w64-mingw32-gcc");
    run(choose_programs(&mut build))?;
    let built = cross_dir().join(Target::Windows.triple()).join("debug");
    let mut proxy = wine()?;
    proxy.arg(built.join("portolan-proxy.exe"));
    relay::check(proxy, &cross_dir().join("relay"))?;
    let folder = fresh_copy(&workspace().join("deploy/demo"), &cross_dir().join("demo"))?;
    println!("cross: the demo on loopback, under Wine");
    run(wine()?
        .arg(built.join("portolan-demo.exe"))
        .args(["loopback", "--manifests"])
        .arg(folder))
}

/// The programs among the packages' binaries: the lab's others are for Linux.
fn choose_programs(command: &mut Command) -> &mut Command {
    let packages = PACKAGES.iter().flat_map(|package| ["--package", package]);
    command
        .args(packages)
        .args(PROGRAMS.iter().flat_map(|program| ["--bin", program]))
}

/// Wine with a prefix of its own and with the one system library that Wine 8 lacks and Rust's standard library asks for.
fn wine() -> Result<Command> {
    let library = cross_dir().join("wine-lib");
    fs::create_dir_all(&library).with_context(|| format!("cannot make {}", library.display()))?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cross/bcryptprimitives.c");
    let dll = library.join("bcryptprimitives.dll");
    if !dll.is_file() {
        let mut gcc = Command::new("x86_64-w64-mingw32-gcc");
        output(
            gcc.args(["-O2", "-shared", "-o"])
                .arg(&dll)
                .arg(source)
                .arg("-ladvapi32"),
        )?;
    }
    let mut wine = Command::new("wine");
    wine.env("WINEPREFIX", cross_dir().join("wine"))
        .env("WINEDEBUG", "-all");
    wine.env(
        "WINEPATH",
        format!("Z:{}", library.display().to_string().replace('/', "\\")),
    );
    Ok(wine)
}

fn macos() -> Result<()> {
    let toolchain = toolchain(Target::Macos)?;
    let (cc, ar) = no_compiler()?;
    let mut check = toolchain.cargo("check", Target::Macos);
    // A check reads no object file, so the C parts of dependencies need not be compiled for it.
    check
        .env("CC_aarch64_apple_darwin", cc)
        .env("AR_aarch64_apple_darwin", ar);
    run(choose_programs(&mut check))?;
    println!(
        "cross: {} type-check for {}",
        PROGRAMS.join(", "),
        Target::Macos.triple()
    );
    Ok(())
}

/// A C compiler and an archiver that write an empty file: there is none for macOS here, and a type-check needs none.
fn no_compiler() -> Result<(PathBuf, PathBuf)> {
    let dir = cross_dir().join("no-compiler");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let write = |name: &str, text: &str| -> Result<PathBuf> {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        run(Command::new("chmod").arg("+x").arg(&path))?;
        Ok(path)
    };
    let cc = write(
        "cc",
        "#!/bin/sh\nwhile [ $# -gt 0 ]; do [ \"$1\" = -o ] && : >\"$2\"; shift; done\nexit 0\n",
    )?;
    let ar = write(
        "ar",
        "#!/bin/sh\nfor word in \"$@\"; do case $word in *.a) : >\"$word\";; esac; done\nexit 0\n",
    )?;
    Ok((cc, ar))
}
