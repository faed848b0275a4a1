//! The accounts whose data is served, and the teams that ask for it.
//!
//! Both are made once, when a stack is built, and travel with each request. A layer that keeps something for each account
//! holds it in a [`PerAccount`].

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::core::outcome::Outcome;
use crate::core::units::Rate;
use crate::twilio::permission::OperationSet;
use crate::twilio::policy::Policy;

/// A Twilio account, without its secret: only `layers::sign` holds that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its name in the configuration: the label in logs and metrics.
    pub name: Arc<str>,
    /// `AC…`. It is part of every cache key, because each account has its own data.
    pub sid: String,
    /// The upstream that the data comes from, as [`host::origin`](crate::semantics::host::origin) writes it. It is part of
    /// every cache key, because another upstream has other data.
    pub origin: String,
    /// Its position among the accounts of its configuration. [`PerAccount`] uses it.
    pub ordinal: usize,
}

impl Account {
    /// What it is, whatever its name is.
    pub fn id(&self) -> AccountId {
        let mut hasher = blake3::Hasher::new_derive_key("insights-gateway 2026 shared store: account");
        for part in [&self.sid, &self.origin] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        let mut id = [0; 16];
        hasher.finalize_xof().fill(&mut id);
        AccountId(id)
    }
}

/// An account by its data: a hash of its SID and origin. It stays the same when a reload gives the account another name,
/// and two names of one account have the same. All replicas and all processes compute the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AccountId(pub(crate) [u8; 16]);

/// The first 16 hexadecimal digits.
impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..8].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// One value for each account of a configuration. It is found by the account's position, so that there is no name to look
/// up and no value that could be missing. Clones share the values.
#[derive(Debug, Clone)]
pub struct PerAccount<T>(Arc<[(Arc<Account>, T)]>);

impl<T> PerAccount<T> {
    /// The values of all accounts of a configuration, in the order of their ordinals.
    pub fn new(values: impl IntoIterator<Item = (Arc<Account>, T)>) -> Self {
        Self(values.into_iter().collect())
    }

    /// The value of `account`, which belongs to the same configuration: a call stays in the stack that admitted it.
    pub fn of(&self, account: &Account) -> &T {
        let (owner, value) = &self.0[account.ordinal];
        debug_assert_eq!(**owner, *account, "an account of another configuration");
        value
    }
}

#[cfg(test)]
impl<T> PerAccount<T> {
    /// For the account of [`Team::example`].
    pub fn example(value: T) -> Self {
        Self::new([(Team::example("local").account, value)])
    }
}

/// A team, which sends requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Team {
    /// Its name in the configuration; `local` where no teams are configured.
    pub name: Arc<str>,
    /// The account whose data it reads.
    pub account: Arc<Account>,
    /// The permissions that it has.
    pub operations: OperationSet,
    /// Its share of the account's budget when several teams wait for tokens.
    pub weight: u32,
    /// The limit of what it may send upstream, in addition to the account's.
    pub upstream: Option<Rate>,
    /// The members that it may see, if that is restricted.
    pub policy: Option<Arc<Policy>>,
    /// Its position among the teams of its configuration. Metrics of a team are found by it.
    pub ordinal: usize,
    /// What it has used since the process started.
    pub usage: TeamUsage,
}

/// What a team has used. Clones share the counts.
#[derive(Debug, Clone, Default)]
pub struct TeamUsage(Arc<UsageCounts>);

#[derive(Debug, Default)]
struct UsageCounts {
    answers: [AtomicU64; Outcome::ALL.len()],
    attempts: AtomicU64,
    saved: AtomicU64,
}

impl TeamUsage {
    /// Counts one answered request. `was_tried` says whether it caused an attempt: a hit can, if a job's status is
    /// polled before the job is shared.
    pub fn answered(&self, outcome: Outcome, was_tried: bool) {
        self.0.answers[outcome as usize].fetch_add(1, Relaxed);
        if outcome.saves_a_call() && !was_tried {
            self.0.saved.fetch_add(1, Relaxed);
        }
    }

    /// Counts one attempt that went upstream in a call of this team.
    pub fn attempted(&self) {
        self.0.attempts.fetch_add(1, Relaxed);
    }

    /// The number of answers with this outcome.
    pub fn answers(&self, outcome: Outcome) -> u64 {
        self.0.answers[outcome as usize].load(Relaxed)
    }

    /// Answers that cost no attempt.
    pub fn saved(&self) -> u64 {
        self.0.saved.load(Relaxed)
    }

    /// Attempts that went upstream.
    pub fn attempts(&self) -> u64 {
        self.0.attempts.load(Relaxed)
    }
}

/// Two are the same if they count together.
impl PartialEq for TeamUsage {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for TeamUsage {}

/// What a team has left of a limit, as the `RateLimit` header states it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// Requests that would be accepted now.
    pub remaining: u64,
    /// Whole seconds until there is one more; 0 when there is one now.
    pub reset: u64,
}

#[cfg(test)]
impl AccountId {
    /// Of the account of [`Team::example`].
    pub(crate) fn example() -> Self {
        Team::example("local").account.id()
    }

    /// Of an account that nothing else is of.
    pub(crate) fn other() -> Self {
        Self([9; 16])
    }
}

#[cfg(test)]
impl Team {
    /// A team of account `main`, `AC1`, that is neither limited nor restricted.
    pub fn example(name: &str) -> Self {
        let account = Arc::new(Account {
            name: "main".into(),
            sid: "AC1".into(),
            origin: "https://upstream:443".into(),
            ordinal: 0,
        });
        let operations = OperationSet::standard();
        let usage = TeamUsage::default();
        Self { name: name.into(), account, operations, weight: 1, upstream: None, policy: None, ordinal: 0, usage }
    }
}
