//! Plain types that every room speaks: no input or output, no locks held across awaits, no clocks of their own.

pub mod clock;
pub mod json;
pub mod operation;
pub mod query;
pub mod units;
