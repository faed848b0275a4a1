//! insights-gateway: a caching, rate-aware, credential-isolating reverse proxy for Twilio's
//! Conversation Insights API.
//!
//! The modules, bottom up. A module imports only modules above it in this list. Public are those that the program, the
//! examples, the tests over sockets, the benchmarks or the fuzzers use:

pub mod core;

pub mod semantics;

pub mod twilio;

mod health;

pub mod accounts;

pub mod request;

pub mod budget;

mod metrics;

pub mod config;

mod trust;

mod telemetry;

mod audit;

mod live;

pub mod cache;

mod replicas;

pub mod layers;

pub mod stack;

pub mod server;

mod admin;

pub mod gateway;

pub mod simulator;

pub mod cli;
