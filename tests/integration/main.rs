//! All tests from outside, on real sockets, in one binary, so that only one has to be linked. Each module has one
//! subject. Tests that measure time or memory are separate binaries, in the folder above.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

#[path = "../support/mod.rs"]
mod support;

mod access_log;
mod admin;
mod admin_requests;
mod audit;
mod body_memory;
mod canary;
mod config;
mod config_sources;
mod connections;
mod cors;
mod cross_site;
mod dead_connections;
mod demo;
mod docs;
mod drain;
mod egress_proxy;
mod environment;
mod events;
mod explorer;
mod fair_queue;
mod fields;
mod framing;
mod health;
mod hostile_upstream;
mod http2;
mod identity;
mod job_links;
mod job_polls;
mod jobs;
mod json_suite;
mod lifecycle;
mod listeners;
mod login;
mod next_steps;
mod openapi;
mod page_tokens;
mod patience;
mod policies;
mod policy_limits;
mod policy_metadata;
mod protocol;
mod purge;
mod query;
mod query_limits;
mod reload;
mod reload_guard;
mod replicas;
mod request_ids;
mod result_sets;
mod retry_after;
mod secrets;
mod sharing;
mod simulator;
mod simulator_fields;
mod simulator_jobs;
mod stampede;
mod status_watch;
mod strangers;
mod strict_requests;
mod token_expiry;
mod traces;
mod upstream_codings;
mod upstream_directives;
mod upstream_faults;
mod upstream_identity;
mod usage;
mod validate;
mod waiting;
mod warm_restart;
mod withheld_answers;
