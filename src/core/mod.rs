//! What every module may use and what depends on no other: the clock, units, errors with their closed list of reasons,
//! outcomes, and the strict JSON reader. No input or output, no locks held across awaits.

pub mod backoff;
pub mod cause;
pub mod clock;
pub mod der;
pub mod episode;
pub mod error;
pub mod escape;
pub mod fields;
pub mod json;
pub mod limiter;
pub mod network;
pub mod outcome;
pub mod peer;
pub mod reloads;
pub mod request_id;
pub mod set_once;
pub mod spelling;
pub mod units;
pub mod uuid;
pub mod validity;
pub mod window;
pub mod work_queue;
