//! How the gateway is: `ok`, `degraded` or `failing`, since when and why.
//!
//! [`evaluate`] decides from what it is given and asks nobody, so that it can be tested at any time of any day. What it is
//! given is collected by the admin plane. [`upstream`] remembers how the last attempts ended, since nobody else does.

mod evaluate;
pub mod upstream;

use std::time::{Duration, SystemTime};

pub use evaluate::{AccountInput, CredentialState, Inputs, TeamInput, evaluate};

/// So long before a certificate or a team's token ends, health says so.
pub const EXPIRY_NOTICE: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// How it is, from good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Nothing is wrong.
    Ok,
    /// It serves, and something is wrong.
    Degraded,
    /// It should not be sent requests.
    Failing,
}

impl State {
    /// The word in `/readyz` and `/status`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Failing => "failing",
        }
    }

    /// The value of the metric.
    pub const fn level(self) -> i64 {
        match self {
            Self::Ok => 0,
            Self::Degraded => 1,
            Self::Failing => 2,
        }
    }
}

/// What one thing is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What kind of thing: `upstream`.
    pub kind: &'static str,
    /// Which one of its kind, where there are several: the name of an account or a team.
    pub subject: Option<String>,
    /// How it is.
    pub state: State,
    /// Since when it is not `ok`.
    pub since: Option<SystemTime>,
    /// What happened last, for an upstream with its [class](crate::core::cause::CauseKind).
    pub cause: Option<String>,
    /// What is wrong and what to do, in a sentence.
    pub detail: Option<String>,
    /// The heading in `docs/runbook.md` that says more.
    pub runbook: Option<&'static str>,
}

impl Check {
    /// `KIND` or `KIND/SUBJECT`: by this it is left out of the verdict.
    pub fn name(&self) -> String {
        match &self.subject {
            Some(subject) => format!("{}/{subject}", self.kind),
            None => self.kind.to_owned(),
        }
    }
}

/// How the gateway is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// What it consists of.
    pub checks: Vec<Check>,
}

impl Health {
    /// The worst state of all checks.
    pub fn state(&self) -> State {
        self.checks.iter().map(|check| check.state).max().unwrap_or(State::Ok)
    }

    /// Since when some check has been in the worst state, where that is known.
    pub fn since(&self) -> Option<SystemTime> {
        let state = self.state();
        self.checks.iter().filter(|check| check.state == state).filter_map(|check| check.since).min()
    }

    /// What may be told to whoever shows no token: one check for all of a kind, without causes and names.
    pub fn anonymous(&self) -> Self {
        let mut kinds: Vec<Check> = Vec::new();
        for check in &self.checks {
            let bare = Check { subject: None, cause: None, detail: None, runbook: None, ..check.clone() };
            match kinds.iter_mut().find(|known| known.kind == check.kind) {
                Some(known) if known.state < bare.state => *known = bare,
                Some(known) if known.state == bare.state => known.since = earliest(known.since, bare.since),
                Some(_) => {}
                None => kinds.push(bare),
            }
        }
        Self { checks: kinds }
    }

    /// Without the checks of these names or kinds.
    pub fn without(&self, is_excluded: impl Fn(&str) -> bool) -> Self {
        let stays = |check: &&Check| !is_excluded(check.kind) && !is_excluded(&check.name());
        Self { checks: self.checks.iter().filter(stays).cloned().collect() }
    }
}

fn earliest(one: Option<SystemTime>, other: Option<SystemTime>) -> Option<SystemTime> {
    one.into_iter().chain(other).min()
}
