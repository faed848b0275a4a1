//! Helpers of the tests on real sockets: an upstream that misbehaves on demand, a gateway in this process, and a client
//! that sends exactly the bytes that it is given.
//!
//! They use only the gateway's public interface and free ports. They do not sleep until something has probably
//! happened: tests wait for events, and [`within`] limits every wait.

#![allow(dead_code, reason = "every test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

pub mod certificate;
pub mod client;
pub mod events;
pub mod faults;
pub mod gateway;
pub mod openapi;
pub mod process;
pub mod requests;
pub mod store;
pub mod upstream;
pub mod wait;

#[allow(unused_imports, reason = "every test binary uses its own part")]
pub use client::{Answer, Client, refusal};
#[allow(unused_imports, reason = "every test binary uses its own part")]
pub use gateway::{Gateway, TestConfig};
#[allow(unused_imports, reason = "every test binary uses its own part")]
pub use requests::{ASK, MEMBERS, METADATA, PAGE, QUERY, get, post, post_to, sha256_hex};
#[allow(unused_imports, reason = "every test binary uses its own part")]
pub use upstream::{Gate, Plan, Seen, Upstream};
#[allow(unused_imports, reason = "every test binary uses its own part")]
pub use wait::{poll, within};
