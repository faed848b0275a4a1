//! One room a capability, in the order in which a request passes them. `stack` composes them.

pub mod retry;

pub mod budget;

pub mod credential;

pub mod upstream;
