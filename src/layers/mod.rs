//! One module per capability, in the order in which a request passes them. [`stack`](crate::stack) composes them.

pub mod observe;

pub mod cors;

pub mod rescue;

pub mod drain;

pub mod shed;

pub mod authenticate;

pub mod decode;

pub mod represent;

pub mod jobs;

pub mod cache;

pub mod retry;

pub mod budget;

pub mod watch;

pub mod sign;

pub mod upstream;
