//! The data that passes through the stack: a received request, the query and the upstream call that it becomes, the context
//! that records what happened to it, the event at its end, the body of its response, the list of requests that wait for
//! a shared call, and the limit of what a request waits for the store of replicas.

pub(crate) mod body;
pub mod call;
pub mod context;
pub(crate) mod ended;
pub(crate) mod grants;
pub(crate) mod incoming;
pub mod key;
pub(crate) mod query;
pub mod response;
pub(crate) mod store_wait;
pub(crate) mod waiters;
