//! Programs for `cargo xtask bench decision`, in an object of their own that no agent embeds.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    allow(dead_code, reason = "of the fast path, only what is measured is used")
)]

#[cfg(target_arch = "bpf")]
#[path = "bench/compared.rs"]
mod compared;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod packet;
#[cfg(target_arch = "bpf")]
mod programs;
#[cfg(target_arch = "bpf")]
mod stats;

/// The programs exist only for the kernel.
#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: the verifier refuses a program with a path to an endless loop.
    loop {}
}
