//! insights-gateway: a caching, rate-aware, credential-isolating reverse proxy for Twilio's
//! Conversation Insights API.

pub mod model;

pub mod config;
