//! `token`: access tokens for teams. A token is shown once; the configuration contains only its hash.

use std::process::ExitCode;

use aws_lc_rs::{digest, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Subcommand;
use zeroize::Zeroizing;

use super::exit;
use super::output::{answer, explain};
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
    /// The gateway stores nothing: give the token to the team, and paste the other lines into the configuration. To
    /// rotate, list the old and the new hash together until every client has changed.
    New {
        /// The team's name in the configuration
        #[arg(value_name = "TEAM", value_parser = team_name)]
        team: String,
    },
}

fn team_name(text: &str) -> Result<String, &'static str> {
    check_team_name(text).map(|()| text.to_owned())
}

/// Runs `command`.
pub fn run(command: &TokenCommand) -> ExitCode {
    let TokenCommand::New { team } = command;
    let mut random = Zeroizing::new([0; RANDOM_BYTES]);
    if rand::fill(random.as_mut_slice()).is_err() {
        explain("insights-gateway: the system gives no random bytes, so no token was made");
        return ExitCode::from(exit::INTERNAL);
    }
    answer(&page(team, &random))
}

fn page(team: &str, random: &[u8; RANDOM_BYTES]) -> Zeroizing<String> {
    let token = Zeroizing::new(format!("{PREFIX}{}", *Zeroizing::new(URL_SAFE_NO_PAD.encode(random))));
    let hash = digest::digest(&digest::SHA256, token.as_bytes());
    let hash: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Zeroizing::new(format!(
        "{}\n\n# The line above is the token, shown only this once. Paste these into the configuration:\n\
         [teams.{team}]\ntoken_sha256 = [\"{hash}\"]\n",
        *token
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_that_of_the_token() {
        let page = page("dashboards", &[7; RANDOM_BYTES]);
        let token = page.lines().next().unwrap();
        assert_eq!(token, "igw_BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc");
        let hash = digest::digest(&digest::SHA256, token.as_bytes());
        let hash: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(page.contains(&format!("[teams.dashboards]\ntoken_sha256 = [\"{hash}\"]\n")));
    }
}
