//! Whose data, and who is asking.

use std::sync::Arc;

use crate::core::units::Rate;
use crate::twilio::endpoint::OperationSet;
use crate::twilio::policy::Policy;

/// A Twilio account, without its secret: nothing above `layers::sign` ever holds that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its name in the configuration: the label in logs and metrics.
    pub name: Arc<str>,
    /// `AC…`: whose data it is, and so a part of every key.
    pub sid: String,
    /// The upstream that the data comes from, as [`host::origin`](crate::semantics::host::origin) writes it. A part of every key
    /// too: another upstream's data is other data.
    pub origin: String,
}

/// A caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Team {
    /// Its name in the configuration; `local` where no teams are configured.
    pub name: Arc<str>,
    /// Whose data it reads.
    pub account: Arc<Account>,
    /// What it may do.
    pub operations: OperationSet,
    /// Share of a contended budget.
    pub weight: u32,
    /// What it may send upstream, whatever the account has left.
    pub upstream: Option<Rate>,
    /// What it may see, if that is restricted.
    pub policy: Option<Arc<Policy>>,
    /// Its place among the teams: what is counted for each team is found by it.
    pub ordinal: usize,
}

/// What a caller has left, as the `RateLimit` header tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// Requests that would be let through now.
    pub remaining: u64,
    /// Whole seconds until there is one more; 0 when there is one now.
    pub reset: u64,
}

#[cfg(test)]
impl Team {
    /// A team of account `main`, `AC1`, that is neither limited nor restricted.
    pub fn example(name: &str) -> Self {
        let account =
            Arc::new(Account { name: "main".into(), sid: "AC1".into(), origin: "https://upstream:443".into() });
        let operations = OperationSet::standard();
        Self { name: name.into(), account, operations, weight: 1, upstream: None, policy: None, ordinal: 0 }
    }
}
