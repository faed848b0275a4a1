//! The health of the gateway: `ok`, `degraded` or `failing`, since when and why.
//!
//! [`evaluate`] computes it only from its inputs, so that it can be tested at any time. The admin plane collects these
//! inputs. [`upstream`] records how the last attempts ended, because no other module does.

mod check;
mod evaluate;
mod inputs;
pub(crate) mod upstream;

pub use check::{Check, EXPIRY_NOTICE, Health, State};
pub use evaluate::evaluate;
pub use inputs::{AccountInput, CredentialState, DiskState, Inputs, StoreState, TeamInput};
