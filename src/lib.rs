//! insights-gateway: a caching, rate-aware, credential-isolating reverse proxy for Twilio's
//! Conversation Insights API.
//!
//! The modules, bottom up. A module imports only modules above it in this list:

pub mod core;

pub mod semantics;

pub mod twilio;

pub mod health;

pub mod accounts;

pub mod request;

pub mod budget;

pub mod metrics;

pub mod config;

pub mod trust;

pub mod telemetry;

pub mod audit;

pub mod live;

pub mod cache;

pub mod replicas;

pub mod layers;

pub mod stack;

pub mod server;

pub mod admin;

pub mod gateway;

pub mod simulator;

pub mod cli;
