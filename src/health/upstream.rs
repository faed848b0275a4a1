//! What the last attempts show about an account's upstream: passive health checking.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::core::cause::Cause;
use crate::core::clock::Instant;

/// How an attempt ended. An attempt that says nothing about the upstream's health is not recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attempt {
    /// The upstream answered.
    Answered {
        /// Whether the answer proves that the account's credentials are accepted, because it is a success.
        accepted: bool,
    },
    /// The attempt failed.
    Failed(Cause),
}

/// What an attempt changed. An episode is the time from a first failure to the next answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// An episode begins.
    Began,
    /// An episode ends. It lasted this long.
    Ended(Duration),
}

/// What is recorded about one account's attempts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attempts {
    /// Since when attempts have failed, if the last one did.
    pub failing_since: Option<Instant>,
    /// Why and when an attempt last failed, even if others have succeeded since.
    pub last_failure: Option<(Cause, Instant)>,
    /// Whether the account's credentials have been accepted since they were configured.
    pub accepted: bool,
}

impl Attempts {
    /// Records an attempt that ended at `now`.
    pub fn ended(&mut self, attempt: Attempt, now: Instant) -> Option<Change> {
        match attempt {
            Attempt::Answered { accepted } => {
                self.accepted |= accepted;
                self.failing_since.take().map(|since| Change::Ended(now.saturating_duration_since(since)))
            }
            Attempt::Failed(cause) => {
                self.last_failure = Some((cause, now));
                let begins = self.failing_since.is_none();
                self.failing_since.get_or_insert(now);
                begins.then_some(Change::Began)
            }
        }
    }
}

/// The attempts of one account. They outlive a reload. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct AccountAttempts(Arc<Mutex<Attempts>>);

impl AccountAttempts {
    /// Records an attempt that ended at `now`.
    pub fn ended(&self, attempt: Attempt, now: Instant) -> Option<Change> {
        self.lock().ended(attempt, now)
    }

    /// Forgets that credentials were accepted, because the account has new ones.
    pub fn forget_acceptance(&self) {
        self.lock().accepted = false;
    }

    /// What is recorded now.
    pub fn now(&self) -> Attempts {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Attempts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::cause::CauseKind;

    const S: Duration = Duration::from_secs(1);

    fn failed(text: &str) -> Attempt {
        Attempt::Failed(Cause::new(CauseKind::Tcp, text))
    }

    #[tokio::test(start_paused = true)]
    async fn an_episode_begins_once_keeps_its_last_cause_and_ends_with_an_answer() {
        let start = Instant::now();
        let mut attempts = Attempts::default();
        let answered = || Attempt::Answered { accepted: true };
        assert_eq!(attempts.ended(answered(), start), None);
        assert_eq!(attempts.ended(failed("refused"), start + S), Some(Change::Began));
        assert_eq!(attempts.ended(failed("reset"), start + 3 * S), None);
        assert_eq!(attempts.failing_since, Some(start + S));
        assert_eq!(attempts.last_failure, Some((Cause::new(CauseKind::Tcp, "reset"), start + 3 * S)));
        assert_eq!(attempts.ended(answered(), start + 5 * S), Some(Change::Ended(4 * S)));
        assert_eq!(attempts.ended(answered(), start + 6 * S), None);
        assert_eq!(attempts.failing_since, None);
        assert!(attempts.last_failure.is_some(), "an open circuit has a cause after the last answer too");
        assert_eq!(attempts.ended(failed("refused"), start + 7 * S), Some(Change::Began), "another episode");
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_success_proves_that_credentials_are_accepted() {
        let (attempts, now) = (AccountAttempts::default(), Instant::now());
        attempts.ended(Attempt::Answered { accepted: false }, now);
        assert!(!attempts.now().accepted);
        attempts.ended(Attempt::Answered { accepted: true }, now);
        attempts.ended(Attempt::Answered { accepted: false }, now);
        attempts.ended(failed("refused"), now);
        assert!(attempts.now().accepted);
        attempts.forget_acceptance();
        assert!(!attempts.now().accepted && attempts.now().failing_since.is_some());
    }
}
