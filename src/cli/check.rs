//! `check`: validates a configuration and prints what is in effect.

use std::process::ExitCode;

use clap::Args;

use super::exit;
use super::output::{answer, explain};
use super::sources::ConfigArgs;
use crate::config;

/// Arguments of `check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// Where the configuration comes from.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Print only what differs from the defaults, each key with where it was set
    #[arg(long)]
    pub diff: bool,
    /// Do not read secrets in files, variables or credentials: for machines that do not have them
    #[arg(long)]
    pub without_secrets: bool,
}

/// Prints the effective configuration, or every fault. The last line on standard error is `OK` or the number of faults
/// and warnings.
pub fn run(args: &CheckArgs) -> ExitCode {
    let sources = args.config.sources();
    let checked = match args.without_secrets {
        true => config::check_without_secrets(&sources),
        false => config::load(&sources).map(|config| (config.record, config.warnings)),
    };
    let (faults, warnings, code) = match checked {
        Ok((record, warnings)) => {
            warn(&warnings);
            let page = if args.diff { record.diff() } else { record.show() };
            (0, warnings.len(), answer(&page))
        }
        Err(faults) => {
            explain(&faults.to_string());
            warn(faults.warnings());
            (faults.count(), faults.warnings().len(), ExitCode::from(exit::USAGE))
        }
    };
    explain(&summary(faults, warnings));
    code
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        explain(&format!("warning: {warning}"));
    }
}

fn summary(faults: usize, warnings: usize) -> String {
    let counted = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    match (faults, warnings) {
        (0, 0) => "OK".to_owned(),
        _ => format!("{}, {}", counted(faults, "fault"), counted(warnings, "warning")),
    }
}
