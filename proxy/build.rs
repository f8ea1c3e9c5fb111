//! Embeds the eBPF programs that `cargo xtask ebpf` built. Without them the daemon builds as well, and says what is missing
//! when the eBPF backend is asked for.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-env-changed=PORTOLAN_EBPF_OBJECT");
    println!("cargo::rerun-if-env-changed=CARGO_TARGET_DIR");
    let Some(out) = env::var_os("OUT_DIR") else { return };
    let embedded = Path::new(&out).join("portolan.bpf.o");
    let object = object();
    // A file that is missing would make cargo run this each time: an empty one stands for "not built".
    if !object.exists()
        && let Some(folder) = object.parent()
    {
        let _ = fs::create_dir_all(folder);
        let _ = fs::write(&object, []);
    }
    println!("cargo::rerun-if-changed={}", object.display());
    let content = fs::read(&object).unwrap_or_default();
    if let Err(error) = fs::write(&embedded, content) {
        println!("cargo::error=cannot write {}: {error}", embedded.display());
    }
}

/// Where `cargo xtask ebpf` puts the programs: the target directory of this checkout and environment.
fn object() -> PathBuf {
    if let Some(object) = env::var_os("PORTOLAN_EBPF_OBJECT") {
        return object.into();
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    workspace.join(target).join("ebpf/portolan.bpf.o")
}
