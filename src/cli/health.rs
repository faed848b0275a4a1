//! `health`: whether the gateway at an admin address is ready. For containers that have only this binary.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value as Json;

use super::ask::ask;
use super::exit;
use super::output::explain;
use super::text::{error_message, plain};

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
    let reasons = match reasons(&answer.body) {
        empty if empty.is_empty() => empty,
        reasons => format!(": {reasons}"),
    };
    explain(&format!("insights-gateway: not ready at {target}: /readyz answered {}{reasons}", answer.status));
    ExitCode::from(exit::NOT_READY)
}

/// What makes the gateway not ready, according to the body of `/readyz`. The message or the whole body, if it is another.
fn reasons(body: &str) -> String {
    let page: Json = serde_json::from_str(body).unwrap_or_default();
    let failing = page["checks"].as_array().into_iter().flatten().filter(|check| check["ok"] == false);
    let named = failing.filter_map(|check| {
        let told: Vec<_> = ["detail", "cause"].iter().filter_map(|name| check[*name].as_str()).collect();
        let name = check["check"].as_str()?;
        Some(if told.is_empty() { plain(name) } else { format!("{}: {}", plain(name), plain(&told.join(", "))) })
    });
    match named.collect::<Vec<_>>() {
        none if none.is_empty() => error_message(body.as_bytes()),
        named => named.join("; "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_failing_checks_are_the_reasons() {
        let page = r#"{"ready":false,"state":"failing","checks":[
            {"check":"serving","ok":true,"state":"ok"},
            {"check":"credentials/main","ok":false,"state":"failing","detail":"replace its \u001b[1mkey","cause":"status: 403"},
            {"check":"upstream/main","ok":true,"state":"degraded","detail":"it fails"},
            {"check":"credentials","ok":false,"state":"failing"}]}"#;
        assert_eq!(reasons(page), "credentials/main: replace its [1mkey, status: 403; credentials");
        assert_eq!(reasons("{\"draining\":true}\n"), "{\"draining\":true}");
        assert_eq!(reasons("{\"error\":\"not here\"}"), "not here");
        assert_eq!(reasons(""), "");
    }
}
