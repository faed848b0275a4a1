//! A clock that is wrong: a small library, preloaded into a process, changes what it reads as the time of day.

use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;

use tempfile::TempDir;

/// The library, compiled once.
static LIBRARY: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| {
    let folder = TempDir::new().unwrap();
    let library = folder.path().join("clock.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/replicas_full/clock.c");
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).status();
    assert!(compiled.unwrap().success(), "the library cannot be compiled");
    (folder, library)
});

/// The environment of a process whose clock is ahead by so many seconds; empty for one whose clock is right.
pub fn variables(ahead: i64) -> Vec<(&'static str, String)> {
    if ahead == 0 {
        return Vec::new();
    }
    vec![("LD_PRELOAD", LIBRARY.1.display().to_string()), ("CLOCK_AHEAD", ahead.to_string())]
}
