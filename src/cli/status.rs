//! `status`: prints the content of `/status` of a running gateway for people.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use serde_json::Value;

use super::ask::{ask, pause};
use super::exit;
use super::output::{answer, explain, print};
use super::status_text::{self, Style};
use super::terminal::Terminal;
use super::text::error_message;

/// Arguments of `status`.
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// Admin URL; by default http:// and INSIGHTS_GATEWAY_ADMIN__LISTEN, else http://127.0.0.1:9090
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// The admin plane's token, if it needs one; better set the variable, because other users of the machine can see flags
    #[arg(long, value_name = "TOKEN", env = "INSIGHTS_GATEWAY_ADMIN_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Print the JSON of /status unchanged
    #[arg(long)]
    pub json: bool,
    /// Ask again every two seconds, until interrupted
    #[arg(long)]
    pub watch: bool,
}

/// Time between two requests.
const WATCH: Duration = Duration::from_secs(2);

/// Sends the request, and prints the status.
pub fn run(args: &StatusArgs) -> ExitCode {
    match look(args) {
        Ok(page) if args.watch => watch(args, page),
        Ok(page) => answer(&page),
        Err(code) => code,
    }
}

/// Prints again and again. A gateway that does not answer for a while, for example during a restart, is asked again.
fn watch(args: &StatusArgs, first: String) -> ExitCode {
    let terminal = Terminal::of_process();
    let mut page = Some(first);
    loop {
        if let Some(page) = page {
            let printed = match terminal.redraws {
                // Overwrites the previous output, so that the screen does not flicker.
                true => print(&format!("\x1b[H{}\x1b[J", page.replace('\n', "\x1b[K\n"))),
                false => print(&page),
            };
            if let Err(code) = printed {
                return code;
            }
        }
        pause(WATCH);
        page = look(args).ok();
    }
}

/// The text to print.
///
/// # Errors
///
/// The exit code; the reason has been printed.
fn look(args: &StatusArgs) -> Result<String, ExitCode> {
    // An empty variable counts as unset, like all variables of the gateway.
    let token = args.token.as_deref().filter(|token| !token.is_empty());
    let (target, said) = ask(args.url.as_deref(), "/status", token)?;
    let refused = |why: &str| {
        explain(&format!("insights-gateway: no status at {target}: {why}"));
        Err(ExitCode::from(exit::NOT_READY))
    };
    match (said.status, serde_json::from_str::<Value>(&said.body)) {
        (200, Ok(_)) if args.json => Ok(said.body),
        (200, Ok(status)) => {
            let Terminal { width, colour, .. } = Terminal::of_process();
            Ok(status_text::page(&status, &target.to_string(), Timestamp::now(), Style { width, colour }))
        }
        (200, Err(_)) => refused("the answer is not JSON; is this the admin address?"),
        (401, _) if token.is_some() => {
            refused("the token of --token, or INSIGHTS_GATEWAY_ADMIN_TOKEN, is not the admin plane's")
        }
        (401, _) => refused("it needs its token: --token, or INSIGHTS_GATEWAY_ADMIN_TOKEN"),
        (status, _) => refused(&format!("/status answered {status}: {}", error_message(said.body.as_bytes()))),
    }
}
