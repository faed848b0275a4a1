//! `health`: whether the gateway at an admin address is ready. For containers that have only this binary.

use std::process::ExitCode;

use clap::Args;

use super::ask::ask;
use super::text::error_message;
use super::{exit, explain};

/// Arguments of `health`.
#[derive(Debug, Clone, Args)]
pub struct HealthArgs {
    /// Admin URL; by default http:// and INSIGHTS_GATEWAY_ADMIN__LISTEN, else http://127.0.0.1:9090
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
}

/// Sends the request, and explains any other result than ready.
pub fn run(args: &HealthArgs) -> ExitCode {
    let (target, answer) = match ask(args.url.as_deref(), "/readyz", None) {
        Ok(answered) => answered,
        Err(code) => return code,
    };
    if answer.status == 200 {
        return ExitCode::from(exit::DONE);
    }
    let reasons = match error_message(answer.body.as_bytes()) {
        empty if empty.is_empty() => empty,
        reasons => format!(": {reasons}"),
    };
    explain(&format!("insights-gateway: not ready at {target}: /readyz answered {}{reasons}", answer.status));
    ExitCode::from(exit::NOT_READY)
}
