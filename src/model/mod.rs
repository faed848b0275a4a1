//! Plain types that every room speaks: no input or output, no locks held across awaits.
//!
//! [`call`] is what a request becomes, [`query`] what its body says, [`key`] its name in the cache,
//! [`freshness`] what may be done with a page, [`error`] why there is none.

pub mod backoff;
pub mod cache_control;
pub mod call;
pub mod catalog;
pub mod clock;
pub mod envelope;
pub mod error;
pub mod escape;
pub mod freshness;
pub mod hints;
pub mod host;
pub mod interest;
pub mod journey;
pub mod json;
pub mod key;
pub mod network;
pub mod operation;
pub mod origin;
pub mod outcome;
pub mod parameters;
pub mod peer;
pub mod policy;
pub mod query;
pub mod reloads;
pub mod request_id;
pub mod settled;
pub mod tenancy;
pub mod trace;
pub mod units;
pub mod visit;
pub mod window;
pub mod wishes;
