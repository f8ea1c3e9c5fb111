//! The compiled programs, embedded when the daemon was built.

/// The object file as `cargo xtask ebpf` wrote it; empty when there was none.
static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/portolan.bpf.o")));

/// An ELF file is read in place, so it has to be aligned.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

/// The programs.
///
/// # Errors
/// When the daemon was built without them.
pub(crate) fn object() -> anyhow::Result<&'static [u8]> {
    anyhow::ensure!(
        !OBJECT.0.is_empty(),
        "this binary was built without the eBPF programs: run `cargo xtask ebpf`, then build it again"
    );
    Ok(&OBJECT.0)
}
