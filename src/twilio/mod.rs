//! The API that the gateway stands in front of: its endpoints, its queries, its metadata, its pages. Nothing here
//! knows of HTTP servers or caches.
//!
//! Facts come from Twilio's OpenAPI document of Insights v3 and from its documentation of the query syntax.

pub mod catalog;
pub mod endpoint;
pub mod links;
pub mod page;
pub mod parameters;
pub mod policy;
pub mod query;
pub mod settled;
