//! `demo`: simulator, gateway and admin page in one process.

use std::process::ExitCode;

use clap::Args;

use super::{exit, explain};

/// Arguments of `demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// Seed of the generated data
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u64,
}

/// Runs the demo until it is told to stop.
pub fn run(_args: DemoArgs) -> ExitCode {
    explain("insights-gateway: demo is not part of this build");
    ExitCode::from(exit::INTERNAL)
}
