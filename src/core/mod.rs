//! What every module may use and what depends on no other: the clock, units, errors with their closed list of reasons,
//! outcomes, and the strict JSON reader. No input or output, no locks held across awaits.

pub(crate) mod backoff;
pub(crate) mod cause;
pub(crate) mod chain;
pub mod clock;
pub(crate) mod der;
pub mod draining;
pub(crate) mod episode;
pub mod error;
pub(crate) mod escape;
pub(crate) mod fields;
pub mod json;
pub(crate) mod limiter;
pub(crate) mod network;
pub(crate) mod outcome;
pub mod peer;
pub(crate) mod prehashed;
pub(crate) mod reloads;
pub mod request_id;
pub(crate) mod set_once;
pub(crate) mod spelling;
pub mod units;
pub(crate) mod uuid;
pub(crate) mod validity;
pub(crate) mod window;
pub(crate) mod work_queue;
