//! `cargo xtask ebpf`: the eBPF programs, for the daemon's build to embed.
//!
//! They need a compiler with the core library for `bpfel-unknown-none`, compiled (Debian's rustc-web and
//! libstd-rust-web-dev-bpf) or in source form (`rustup toolchain install nightly --component rust-src`), and bpf-linker,
//! which is built once into a cache of its own. The object goes to `TARGET/ebpf/portolan.bpf.o`; it is written only when it
//! changed, so that nothing is built again without need.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::command::{RUST, one_line, output, run_logged, seconds, target_dir, version, which, workspace};
use crate::kube_assets::cache_base;

const TARGET: &str = "bpfel-unknown-none";
const LINKER: &str = "0.13.0";
/// The LLVM that bpf-linker is linked with: at least the compiler's own.
const LLVM: &str = "22";
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// A compiler for the target.
pub struct Toolchain {
    /// The compiler, named in the doctor's table.
    pub rustc: PathBuf,
    cargo: PathBuf,
    /// Whether cargo has to compile the core library first.
    build_std: bool,
}

/// Builds the programs and prints where they are.
pub fn run() -> Result<PathBuf> {
    let start = Instant::now();
    let toolchain = toolchain()?;
    let linker = linker()?;
    let dir = target_dir().join("ebpf");
    let mut build = Command::new(&toolchain.cargo);
    // What the cargo and rustup above us set is meant for their own toolchain.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO") && name != "CARGO_HOME" || name.starts_with("RUST") && name != "RUSTUP_HOME" {
            build.env_remove(&*name);
        }
    }
    build
        .current_dir(workspace())
        .stdin(Stdio::null())
        .env("RUSTC", &toolchain.rustc)
        // The target is not a stable one.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &linker)
        .env("CARGO_ENCODED_RUSTFLAGS", "-Cdebuginfo=2\u{1f}-Clink-arg=--btf")
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
        .args([
            "build",
            "--quiet",
            "--release",
            "--package",
            "portolan-ebpf",
            "--target",
            TARGET,
        ])
        .arg("--target-dir")
        .arg(&dir);
    if toolchain.build_std {
        build.arg("-Zbuild-std=core");
    }
    let status = build.status().context("cannot start cargo")?;
    if !status.success() {
        bail!("cargo ended with {status}");
    }
    let built = dir.join(TARGET).join("release/portolan-ebpf");
    let object = dir.join("portolan.bpf.o");
    let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    let same = fs::read(&object).is_ok_and(|old| old == bytes);
    if !same {
        fs::write(&object, &bytes).with_context(|| format!("cannot write {}", object.display()))?;
    }
    let news = if same { "unchanged" } else { "new" };
    println!(
        "ebpf: {} ({} bytes, {news}) in {}",
        object.display(),
        bytes.len(),
        seconds(start.elapsed())
    );
    Ok(object)
}

/// A toolchain for the target: rustup's nightly with the library's source, or the distribution's with the library.
pub fn toolchain() -> Result<Toolchain> {
    let mut reasons = Vec::new();
    for candidate in [nightly(), distribution()] {
        match candidate {
            Ok(toolchain) => return Ok(toolchain),
            Err(error) => reasons.push(one_line(format!("{error:#}"))),
        }
    }
    bail!("no rustc for {TARGET}: {}", reasons.join("; "))
}

fn nightly() -> Result<Toolchain> {
    let rustup = which("rustup").context("no rustup on PATH")?;
    let find = |name: &str| -> Result<PathBuf> {
        let path = output(Command::new(&rustup).args(["which", "--toolchain", "nightly", name]))?;
        Ok(PathBuf::from(path.trim()))
    };
    let rustc = find("rustc").context("no nightly")?;
    if !has_source(&rustc)? {
        bail!("nightly has no rust-src");
    }
    Ok(Toolchain {
        cargo: find("cargo")?,
        rustc,
        build_std: true,
    })
}

fn distribution() -> Result<Toolchain> {
    let rustc = PathBuf::from("/usr/bin/rustc");
    version(Command::new(&rustc).arg("--version"), RUST)?;
    let library = sysroot(&rustc)?.join("lib/rustlib").join(TARGET).join("lib");
    if !library.is_dir() {
        bail!("{} has no library for it", rustc.display());
    }
    Ok(Toolchain {
        cargo: PathBuf::from("/usr/bin/cargo"),
        rustc,
        build_std: false,
    })
}

fn has_source(rustc: &Path) -> Result<bool> {
    let source = sysroot(rustc)?.join("lib/rustlib/src/rust/library/core/Cargo.toml");
    Ok(source.is_file())
}

fn sysroot(rustc: &Path) -> Result<PathBuf> {
    let sysroot = output(Command::new(rustc).args(["--print", "sysroot"]))?;
    Ok(PathBuf::from(sysroot.trim()))
}

/// bpf-linker of the wanted version: the one on PATH, or one that is built into the cache, once a machine.
fn linker() -> Result<PathBuf> {
    if let Some(found) = which("bpf-linker")
        && output(Command::new(&found).arg("--version")).is_ok_and(|text| text.contains(LINKER))
    {
        return Ok(found);
    }
    let root = cache_base()?.join(format!("bpf-linker-{LINKER}"));
    let program = root.join("bin/bpf-linker");
    if program.is_file() {
        return Ok(program);
    }
    println!("  bpf-linker {LINKER} is built once into {}", root.display());
    let mut install = Command::new("cargo");
    install
        .current_dir(std::env::temp_dir())
        .env_remove("RUSTC")
        .env_remove("CARGO_TARGET_DIR")
        .args([
            "install",
            "--locked",
            "bpf-linker",
            "--version",
            LINKER,
            "--no-default-features",
        ])
        .args(["--features", &format!("llvm-{LLVM}"), "--root"])
        .arg(&root);
    if Path::new(LLVM_PREFIX).is_dir() {
        install.env("LLVM_PREFIX", LLVM_PREFIX);
    }
    run_logged("bpf-linker", &mut install, &target_dir().join("xtask/bpf-linker.log"))?;
    Ok(program)
}

/// Whether bpf-linker is there, or could be built: what was found.
pub fn linker_or_llvm() -> Result<String> {
    let cached = cache_base()?.join(format!("bpf-linker-{LINKER}/bin/bpf-linker"));
    if cached.is_file() {
        return Ok(cached.display().to_string());
    }
    if let Some(found) = which("bpf-linker") {
        return Ok(found.display().to_string());
    }
    let config = Path::new(LLVM_PREFIX).join("bin/llvm-config");
    if !config.exists() || !Path::new(LLVM_PREFIX).join("lib/libPolly.a").exists() {
        bail!("no bpf-linker, and no LLVM {LLVM} with its headers to build it with");
    }
    Ok(format!("{LLVM_PREFIX}, to build bpf-linker with"))
}
