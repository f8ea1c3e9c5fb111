//! Tells the crate what is built: the target, and the commit where the environment names one.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=PORTOLAN_COMMIT");
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let version = variable("CARGO_PKG_VERSION").unwrap_or_default();
    let target = variable("TARGET").unwrap_or_default();
    let commit = variable("PORTOLAN_COMMIT").unwrap_or_else(|| "unknown".into());
    println!("cargo:rustc-env=PORTOLAN_BUILD_TARGET={target}");
    println!("cargo:rustc-env=PORTOLAN_BUILD_COMMIT={commit}");
    println!("cargo:rustc-env=PORTOLAN_BUILD_LONG={version} ({target}, commit {commit})");
}
