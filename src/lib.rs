//! insights-gateway: a caching, rate-aware, credential-isolating reverse proxy for Twilio's
//! Conversation Insights API.
//!
//! The map, bottom up. Each module imports only what stands above its own line:

pub mod core;

pub mod semantics;

pub mod twilio;

pub mod accounts;

pub mod request;

pub mod budget;

pub mod metrics;

pub mod config;

pub mod trust;

pub mod telemetry;

pub mod audit;

pub mod cache;

pub mod layers;

pub mod stack;

pub mod server;

pub mod admin;

pub mod gateway;

pub mod simulator;

pub mod cli;
