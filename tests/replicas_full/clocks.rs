//! Clocks that are wrong. A small library, preloaded into a process, changes what it reads as the time of day.

use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;

use tempfile::TempDir;

use super::rig::{PHASE, Setup};
use super::support::store::Server;

const HOUR: i64 = 3600;

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

async fn steady(name: &str, store_ahead: i64, gateways_ahead: [i64; 3]) -> Option<()> {
    let variables = variables(store_ahead);
    let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let server = Server::start_with(&[], &variables).await?;
    let rig = Setup::new(name, server.url()).clocks(gateways_ahead).start().await;
    tokio::time::sleep(2 * PHASE).await;
    rig.shares_pages().await;
    rig.finish().await;
    Some(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn gateways() {
    steady("clocks of two replicas an hour off", 0, [0, HOUR, -HOUR]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn store_ahead() {
    steady("clock of the store an hour ahead", HOUR, [0; 3]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the long matrix"]
async fn store_behind() {
    steady("clock of the store an hour behind", -HOUR, [0; 3]).await;
}
