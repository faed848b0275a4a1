//! What the health is computed from.

use std::time::SystemTime;

use crate::core::cause::Cause;
use crate::core::validity::Validity;

/// The state of everything that is checked, at one moment.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// That moment.
    pub now: SystemTime,
    /// Since when the gateway has been shutting down, if it is.
    pub draining_since: Option<SystemTime>,
    /// Since when new configurations have been refused, and the fault in the newest.
    pub refused: Option<(SystemTime, String)>,
    /// The state of the disk cache; `None` if none is configured.
    pub disk: Option<DiskState>,
    /// Whether the store is reached that replicas share; `None` if none is configured.
    pub shared: Option<StoreState>,
    /// The validity of the data plane's certificate, and since when it has been in use, if the data plane uses TLS.
    pub certificate: Option<(Validity, SystemTime)>,
    /// The teams.
    pub teams: Vec<TeamInput>,
    /// The accounts.
    pub accounts: Vec<AccountInput>,
}

/// Whether the disk cache works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskState {
    /// It works.
    Works,
    /// Pages are only in memory.
    Broken {
        /// Since when.
        since: SystemTime,
        /// What the disk says.
        cause: String,
    },
}

/// How much is used of the store that replicas share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreState {
    /// All of it.
    Used,
    /// It is reached, but some of what replicas do there fails.
    UsedInPart {
        /// Since when.
        since: SystemTime,
        /// Why.
        cause: String,
    },
    /// This replica is alone.
    Alone {
        /// Since when.
        since: SystemTime,
        /// Why.
        cause: String,
    },
}

/// A team and when its tokens expire.
#[derive(Debug, Clone)]
pub struct TeamInput {
    /// Its name.
    pub name: String,
    /// When each token expires; `None` for a token that never does.
    pub tokens: Vec<Option<SystemTime>>,
}

impl TeamInput {
    /// When the next token expires. If all have expired, when the last one did. `None` if no token ever expires.
    pub fn expiry(&self, now: SystemTime) -> Option<SystemTime> {
        let ends = || self.tokens.iter().flatten().copied();
        ends().filter(|ends| *ends > now).min().or_else(|| ends().max())
    }
}

/// Whether Twilio accepts an account's credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CredentialState {
    /// The credentials have not been used yet.
    Unknown,
    /// Twilio accepts them.
    Accepted,
    /// Twilio rejects them.
    Rejected {
        /// Since when.
        since: SystemTime,
        /// The status of its last answer, 401 or 403.
        status: u16,
    },
}

impl CredentialState {
    /// The word in `/status`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Accepted => "accepted",
            Self::Rejected { .. } => "rejected",
        }
    }

    /// Since when Twilio has rejected them, and its status, if it does.
    pub const fn rejected(self) -> Option<(SystemTime, u16)> {
        match self {
            Self::Rejected { since, status } => Some((since, status)),
            Self::Unknown | Self::Accepted => None,
        }
    }
}

/// An account and its upstream.
#[derive(Debug, Clone)]
pub struct AccountInput {
    /// Its name.
    pub name: String,
    /// Whether Twilio accepts its credentials.
    pub credentials: CredentialState,
    /// Since when attempts have failed, if the last one did.
    pub failing_since: Option<SystemTime>,
    /// Since when its circuit has not been closed, if it is open or half open.
    pub broken_since: Option<SystemTime>,
    /// Why and when an attempt last failed.
    pub last_failure: Option<(Cause, SystemTime)>,
}
