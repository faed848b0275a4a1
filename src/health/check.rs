//! States, the checks that have them, and the verdict of all checks.

use std::time::{Duration, SystemTime};

/// How long before a certificate or a team's token expires health reports it.
pub const EXPIRY_NOTICE: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// A state of health, from good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Nothing is wrong.
    Ok,
    /// It serves requests, but something is wrong.
    Degraded,
    /// It should get no requests.
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

/// The health of one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What kind of thing: `upstream`.
    pub kind: &'static str,
    /// The name of the account or team, for kinds of which there can be several.
    pub subject: Option<String>,
    /// Its state.
    pub state: State,
    /// Since when it is not `ok`.
    pub since: Option<SystemTime>,
    /// What happened last. For an upstream it begins with the [class](crate::core::cause::CauseKind).
    pub cause: Option<String>,
    /// What is wrong and what to do, in one sentence.
    pub detail: Option<String>,
    /// The heading in `docs/runbook.md` that says more.
    pub runbook: Option<&'static str>,
}

impl Check {
    /// `KIND` or `KIND/SUBJECT`. This name excludes the check from the verdict.
    pub fn name(&self) -> String {
        match &self.subject {
            Some(subject) => format!("{}/{subject}", self.kind),
            None => self.kind.to_owned(),
        }
    }
}

/// The health of the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Its checks.
    pub checks: Vec<Check>,
}

impl Health {
    /// The worst state of all checks.
    pub fn state(&self) -> State {
        self.checks.iter().map(|check| check.state).max().unwrap_or(State::Ok)
    }

    /// Since when a check has been in the worst state, if that is known.
    pub fn since(&self) -> Option<SystemTime> {
        let state = self.state();
        self.checks.iter().filter(|check| check.state == state).filter_map(|check| check.since).min()
    }

    /// The part that is shown without a token: one check for each kind, without causes and names.
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

    /// The health without the checks of these names or kinds.
    pub fn without(&self, is_excluded: impl Fn(&str) -> bool) -> Self {
        let stays = |check: &&Check| !is_excluded(check.kind) && !is_excluded(&check.name());
        Self { checks: self.checks.iter().filter(stays).cloned().collect() }
    }
}

pub(super) fn earliest(one: Option<SystemTime>, other: Option<SystemTime>) -> Option<SystemTime> {
    one.into_iter().chain(other).min()
}
