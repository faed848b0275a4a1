//! `completions`: prints a shell's completion script for this program.

use std::process::ExitCode;

use clap::{Args, Command};
use clap_complete::Shell;

use super::output::answer;

/// Arguments of `completions`.
#[derive(Debug, Clone, Args)]
pub struct CompletionsArgs {
    /// The shell that the script is for
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

/// Prints the script for `command`, the whole command line.
pub fn run(args: &CompletionsArgs, command: &mut Command) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "insights-gateway", &mut script);
    answer(&String::from_utf8_lossy(&script))
}
