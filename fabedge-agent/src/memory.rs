//! Memory that is free goes back to the kernel.
#![allow(unsafe_code, reason = "the C library's allocator is asked, which only C can")]

/// Gives back what was freed. By itself the allocator keeps all that lies below something in use: after programs were loaded,
/// or thousands of peers were read, that is most of it.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number, and looks at nothing but the allocator's own books, under its lock.
    unsafe {
        libc::malloc_trim(0);
    }
}
