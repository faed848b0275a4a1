//! `check`: is this configuration good, and what does it come to.

use std::process::ExitCode;

use clap::Args;

use super::{ConfigArgs, answer, explain, load_or_explain};

/// Arguments of `check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// Where the configuration comes from.
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Prints the effective configuration, or every fault.
pub fn run(args: &CheckArgs) -> ExitCode {
    match load_or_explain(&args.config.sources()) {
        Err(code) => code,
        Ok(config) => {
            for warning in &config.warnings {
                explain(&format!("warning: {warning}"));
            }
            answer(&config.show())
        }
    }
}
