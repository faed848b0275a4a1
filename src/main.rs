//! The binary: everything it does is in the library.

use std::process::ExitCode;

/// Its background thread returns what has not been needed for ten seconds, busy or not. Measured: a hit costs no more
/// than with mimalloc, which keeps what a crowd took, as the system's allocator does.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // To clear a huge page takes milliseconds where it happens, in the middle of a miss; and one that is used in part
    // is returned in none. A kernel that has none to disable is fine.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    insights_gateway::cli::run()
}
