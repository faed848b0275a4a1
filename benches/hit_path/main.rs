//! Measures the cost of a cache hit, next to that of bare hyper and of nginx, in one run.
//!
//! ```text
//! cargo bench --bench hit_path                                      # 16 KiB, one query
//! cargo bench --bench hit_path -- --sizes all --keys 1,10000        # everything about hits
//! cargo bench --bench hit_path -- --misses                          # what a miss adds to the upstream
//! cargo bench --bench hit_path -- --instructions                    # user-space instructions of each kind of request
//! cargo bench --bench hit_path -- --instructions --max hit=20000,hit-log=25000
//! ```
//!
//! Instructions are counted by callgrind (Debian's package `valgrind`) in a few minutes. They differ by less than one
//! in a hundred between runs, whatever else the machine does: compare these while you work. With `--max` the command
//! fails where a row takes more. `--only hit,miss` counts only these. `--profiles FOLDER` keeps callgrind's files, for
//! `callgrind_annotate --inclusive=yes`. They contain names of functions if the gateway was built with
//! `CARGO_PROFILE_RELEASE_STRIP=none`, and also lines with `CARGO_PROFILE_RELEASE_DEBUG=line-tables-only`. `--gateway
//! PATH` counts another build of the gateway.
//!
//! When you measure time, compare rows of one run, never numbers of two runs: a shared machine drifts by more than what
//! is measured. Servers take turns for this reason, every ratio is of two turns of one round, and the output has the
//! medians of those.

#![expect(clippy::disallowed_methods, reason = "real time is what is measured here")]

use std::process::ExitCode;

#[cfg(target_os = "linux")]
mod rig;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    rig::run()
}

/// Pinning, `/proc` and `MSG_TRUNC` exist only on Linux.
#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    eprintln!("hit_path runs on Linux only");
    ExitCode::SUCCESS
}
