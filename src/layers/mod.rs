//! One module per capability, in the order in which a request passes them. [`stack`](crate::stack) composes them.

pub(crate) mod observe;

pub(crate) mod cors;

pub(crate) mod rescue;

pub(crate) mod drain;

pub(crate) mod shed;

pub(crate) mod authenticate;

pub(crate) mod decode;

pub(crate) mod represent;

pub(crate) mod jobs;

pub(crate) mod cache;

pub(crate) mod retry;

pub(crate) mod budget;

pub(crate) mod watch;

pub(crate) mod sign;

pub mod upstream;
