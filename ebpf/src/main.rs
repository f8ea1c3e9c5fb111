//! The eBPF programs. Built for `bpfel-unknown-none` by `cargo xtask ebpf`; for any other target this is an empty program.
//!
//! They carry out plans and decide nothing: who gets what stands in the maps ([`portolan_abi`]), written by the daemon.
//! They use nothing that Linux 5.10 lacks, apart from what a global turns on after a probe.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod choose;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod socket;

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier proves that this is never reached: it refuses a program with an endless loop.
    loop {}
}

/// No helper that the programs call asks for another licence.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("these are eBPF programs: build them with `cargo xtask ebpf`");
}
