//! `token`: access tokens for teams. A token is shown once; the configuration contains only its hash.

use std::process::ExitCode;

use aws_lc_rs::{digest, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Subcommand;
use zeroize::Zeroizing;

use super::exit;
use super::output::{explain, print};
use crate::config::check_team_name;

/// Marks the gateway's tokens, so that people and scanners for leaked secrets recognise them.
const PREFIX: &str = "igw_";
/// 256 bits cannot be guessed, so a plain hash in the configuration is enough.
const RANDOM_BYTES: usize = 32;

/// The subcommands of `token`.
#[derive(Debug, Clone, Subcommand)]
pub enum TokenCommand {
    /// Print a new access token, once, and the token_sha256 line for the configuration
    ///
    /// The token is printed on standard output, and the lines for the configuration on standard error. The gateway
    /// stores nothing: give the token to the team, and paste the lines into the configuration. To rotate, list the old
    /// and the new hash together until every client has changed.
    New {
        /// The team's name in the configuration
        #[arg(value_name = "TEAM", value_parser = team_name)]
        team: String,
        /// Print team, token and token_sha256 as one JSON object on standard output
        #[arg(long)]
        json: bool,
    },
}

fn team_name(text: &str) -> Result<String, &'static str> {
    check_team_name(text).map(|()| text.to_owned())
}

/// Runs `command`.
pub fn run(command: &TokenCommand) -> ExitCode {
    let TokenCommand::New { team, json } = command;
    let mut random = Zeroizing::new([0; RANDOM_BYTES]);
    if rand::fill(random.as_mut_slice()).is_err() {
        explain("insights-gateway: the system gives no random bytes, so no token was made");
        return ExitCode::from(exit::INTERNAL);
    }
    let token = AccessToken::of(&random);
    if let Err(code) = print(&if *json { token.json(team) } else { token.line() }) {
        return code;
    }
    if !json {
        explain(&token.advice(team));
    }
    ExitCode::from(exit::DONE)
}

struct AccessToken {
    token: Zeroizing<String>,
    sha256: String,
}

impl AccessToken {
    fn of(random: &[u8; RANDOM_BYTES]) -> Self {
        let token = Zeroizing::new(format!("{PREFIX}{}", *Zeroizing::new(URL_SAFE_NO_PAD.encode(random))));
        let hash = digest::digest(&digest::SHA256, token.as_bytes());
        let sha256 = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Self { token, sha256 }
    }

    fn line(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{}\n", *self.token))
    }

    /// What to do with it, without the token.
    fn advice(&self, team: &str) -> String {
        let sha256 = &self.sha256;
        format!(
            "\n# The token is shown only this once. Paste these lines into the configuration:\n\
             [teams.{team}]\ntoken_sha256 = [\"{sha256}\"]"
        )
    }

    /// All values consist of letters, digits, dashes and underscores, so that none needs escaping.
    fn json(&self, team: &str) -> Zeroizing<String> {
        let Self { token, sha256 } = self;
        Zeroizing::new(format!("{{\"team\":\"{team}\",\"token\":\"{}\",\"token_sha256\":\"{sha256}\"}}\n", **token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_that_of_the_token() {
        let made = AccessToken::of(&[7; RANDOM_BYTES]);
        let token = "igw_BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc";
        assert_eq!(*made.line(), format!("{token}\n"));
        let hash = digest::digest(&digest::SHA256, token.as_bytes());
        let hash: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(made.advice("dashboards").ends_with(&format!("[teams.dashboards]\ntoken_sha256 = [\"{hash}\"]")));
        assert!(!made.advice("dashboards").contains(token));
        let object: serde_json::Value = serde_json::from_str(&made.json("dashboards")).unwrap();
        assert_eq!(object, serde_json::json!({"team": "dashboards", "token": token, "token_sha256": hash}));
    }
}
