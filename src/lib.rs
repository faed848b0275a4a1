//! insights-gateway: a caching, rate-aware, credential-isolating reverse proxy for Twilio's
//! Conversation Insights API.
//!
//! The map of the house, bottom up; each module imports only what stands above its own line:

pub mod model;

pub mod metrics;

pub mod config;

pub mod trust;

pub mod telemetry;

pub mod audit;

pub mod layers;

pub mod stack;

pub mod server;

pub mod admin;

pub mod gateway;

pub mod simulator;

pub mod cli;
