//! Everything that is tested from outside, on real sockets, in one binary: one link instead of two dozen. Each module
//! has one subject. Tests that measure time or memory are binaries of their own, beside this folder.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

#[path = "../support/mod.rs"]
mod support;

mod access_log;
mod admin;
mod audit;
mod canary;
mod config;
mod docs;
mod hostile_upstream;
mod http2;
mod identity;
mod lifecycle;
mod listeners;
mod protocol;
mod query;
mod reload;
mod secrets;
mod sharing;
mod simulator;
mod stampede;
mod status_watch;
mod traces;
mod upstream_faults;
mod waiting;
mod warm_restart;
