//! What HTTP's own standards say, for both sides of the gateway: freshness (RFC 9111), request directives, limits in an
//! upstream's headers, trace context. This module does not know Twilio, teams or the cache's storage.

pub mod cache_control;
pub(crate) mod cache_status;
pub mod freshness;
pub mod host;
pub(crate) mod lifetimes;
pub(crate) mod origin;
pub mod request_directives;
pub(crate) mod trace;
pub mod upstream_headers;
