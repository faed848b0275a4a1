//! `serve`: the gateway.

use std::process::ExitCode;

use clap::Args;

use super::{ConfigArgs, exit, explain, load_or_explain};

/// Arguments of `serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// Where the configuration comes from.
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Runs the gateway until it is told to stop.
pub fn run(args: ServeArgs) -> ExitCode {
    match load_or_explain(&args.config.sources()) {
        Err(code) => code,
        Ok(_) => {
            explain("insights-gateway: serve is not part of this build");
            ExitCode::from(exit::INTERNAL)
        }
    }
}
