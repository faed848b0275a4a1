//! Twilio's API, for which the gateway is a proxy: its endpoints, queries, metadata and pages. This module does not
//! know HTTP servers or caches.
//!
//! The facts come from Twilio's OpenAPI document of Insights v3 and from its documentation of the query syntax.

pub mod catalog;
pub mod endpoint;
pub(crate) mod job;
pub mod links;
pub(crate) mod misspelt;
pub mod page;
pub mod parameters;
pub(crate) mod permission;
pub mod policy;
pub mod query;
pub mod settled;
pub(crate) mod validate;
