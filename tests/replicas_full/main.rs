//! The long matrix of replicas: three gateways as processes, the simulator as upstream, real servers as the store, and
//! everything that can happen to a store.
//!
//! Under each scenario no request fails, the upstream is called no more often than the budget of all replicas allows, and
//! no page is older than its windows. It takes minutes, so its tests are ignored unless they are asked for:
//!
//! ```sh
//! tests/run replicas-full
//! ```
//!
//! Each scenario prints a row of a table, and adds it to the file that the variable `REPLICAS_TABLE` names.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

#[path = "../support/mod.rs"]
mod support;

mod access;
mod bound;
mod clocks;
mod demand;
mod load;
mod outages;
mod rig;
mod servers;
mod topologies;
mod wrong_clock;
