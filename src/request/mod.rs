//! The data that passes through the stack: a received request, the query and the upstream call that it becomes, the context
//! that records what happened to it, the event at its end, the body of its response, the list of requests that wait for
//! a shared call, and the limit of what a request waits for the store of replicas.

pub mod body;
pub mod call;
pub mod context;
pub mod ended;
pub mod grants;
pub mod incoming;
pub mod key;
pub mod query;
pub mod response;
pub mod store_wait;
pub mod waiters;
