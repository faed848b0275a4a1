//! `schema`: the configuration as a JSON Schema.

use std::process::ExitCode;

use clap::Args;

use super::output::answer;
use crate::config;

/// Arguments of `schema`.
#[derive(Debug, Clone, Args)]
pub struct SchemaArgs {}

/// Prints the schema.
pub fn run(SchemaArgs {}: &SchemaArgs) -> ExitCode {
    answer(&config::schema())
}
