//! The kinds of requests whose instructions are counted.

use std::str::FromStr;

use clap::ValueEnum;

/// A token and its SHA-256.
const TOKEN: &str = "igw_benchmark_0123456789abcdefghijklmnopqrstuvwxyz";
const TOKEN_SHA256: &str = "466a04ad46bd828e55f8ed1c928491f0253a719df5245f5d19f9ccaeb158ce87";

/// What is requested, and from which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Row {
    /// From hyper alone, which answers from memory.
    Bare,
    /// A cached query.
    Hit,
    /// The same, with the access log.
    HitLog,
    /// The same without it, for a team that shows a token.
    TeamHit,
    /// For a team that also has a policy.
    PolicyHit,
    /// A query that was not asked before.
    Miss,
}

impl Row {
    pub const ALL: [Self; 6] = [Self::Bare, Self::Hit, Self::HitLog, Self::TeamHit, Self::PolicyHit, Self::Miss];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Hit => "hit",
            Self::HitLog => "hit-log",
            Self::TeamHit => "team-hit",
            Self::PolicyHit => "policy-hit",
            Self::Miss => "miss",
        }
    }

    pub const fn description(self) -> &'static str {
        match self {
            Self::Bare => "bare hyper",
            Self::Hit => "a hit",
            Self::HitLog => "a hit with its access line",
            Self::TeamHit => "a hit of a team",
            Self::PolicyHit => "a hit of a team with a policy",
            Self::Miss => "a miss",
        }
    }

    pub fn token(self) -> Option<&'static str> {
        matches!(self, Self::TeamHit | Self::PolicyHit).then_some(TOKEN)
    }

    /// In addition to those that every measured gateway has.
    pub fn settings(self) -> Vec<String> {
        let mut settings = vec![format!("log.access={}", self == Self::HitLog)];
        if self.token().is_some() {
            settings.push(format!("teams.dashboards.token_sha256={TOKEN_SHA256}"));
        }
        if self == Self::PolicyHit {
            settings.push("teams.dashboards.policy.deny=Conversation.ConversationName".to_owned());
        }
        settings
    }
}

/// The most instructions that a row may take: `hit=20000`.
#[derive(Debug, Clone, Copy)]
pub struct Max {
    pub row: Row,
    pub instructions: u64,
}

impl FromStr for Max {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (row, most) = text.split_once('=').ok_or_else(|| format!("\"{text}\" is not of the form hit=20000"))?;
        let instructions = most.parse().map_err(|_| format!("\"{most}\" is not a number of instructions"))?;
        Ok(Self { row: Row::from_str(row, false)?, instructions })
    }
}
