//! Estimates of waits: when the next tokens come, and how many there are.

use std::time::Duration;

use super::{Mode, ReplicaState};
use crate::accounts::Team;
use crate::budget::{CommonTokens, Parts, QuotaSource, QuotaStatus};
use crate::core::clock::Instant;
use crate::replicas::budget::ledger::TokenRate;

impl ReplicaState {
    /// The later of the pauses that this replica and others have learnt of.
    pub(super) fn resumes(&self, now: Instant) -> Instant {
        let own = now + self.local.status(now).paused;
        self.last_reply.paused_until.map_or(own, |until| until.max(own))
    }

    /// Until when [`nth_at`](Self::nth_at) may be too early.
    pub(in crate::replicas::budget) fn queues_known_at(&self) -> Option<Instant> {
        self.queues_known_at.filter(|_| self.living > 1 && matches!(self.mode, Mode::Shared))
    }

    /// When the `n`-th token is expected here. Each replica whose queue is as long gets as many tokens meanwhile, and
    /// one with a shorter queue as many as it needs.
    pub(in crate::replicas::budget) fn nth_at(&self, n: u32, now: Instant) -> Instant {
        let resumes = self.resumes(now);
        if let Mode::Standalone(standalone) = &self.mode {
            let local = self.local.nth_at(n, now);
            return standalone.as_ref().map_or(local, |standalone| standalone.limiter().nth_at(n, resumes).max(local));
        }
        let TokenRate { period, burst } = self.last_reply.rate;
        let others = u64::from(self.living - 1).saturating_mul(n.into()).min(self.last_reply.elsewhere.into());
        let all = u64::from(n).saturating_add(others);
        // Tokens that are held are already paid for.
        let all = all.saturating_sub(self.held.len() as u64);
        let paid = self.last_reply.paid.map_or(resumes, |paid| paid.max(resumes));
        let from_resumes = Duration::from_micros(period.saturating_mul(all).min(u64::MAX / 1000));
        let depth = Duration::from_micros(period.saturating_mul(burst).min(u64::MAX / 1000));
        let paid_at = (paid - resumes).saturating_add(from_resumes).saturating_sub(depth);
        (resumes + paid_at.min(Duration::from_secs(366 * 86_400))).max(self.local.nth_at(n, now))
    }

    pub(in crate::replicas::budget) fn team_tokens(&self, team: &Team) -> Option<CommonTokens> {
        let next = *self.last_reply.teams.get(&team.name)?;
        Some(CommonTokens { next, others: self.living - 1, elsewhere: self.last_reply.elsewhere })
    }

    /// Into how many parts what replicas have in common is divided now.
    pub(in crate::replicas::budget) fn parts(&self) -> Parts {
        let count = match self.mode {
            Mode::Standalone(_) => self.all(),
            _ => 1,
        };
        Parts { count, emptied: self.mode_changed }
    }

    pub(in crate::replicas::budget) fn concurrency(&self, now: Instant) -> u32 {
        let replicas = match self.mode {
            Mode::Shared => self.living,
            _ => self.all(),
        };
        (self.local.concurrency(now) / replicas).max(1)
    }

    pub(in crate::replicas::budget) fn status(&self, now: Instant) -> QuotaStatus {
        let local = self.local.status(now);
        let paused = self.resumes(now).saturating_duration_since(now);
        let TokenRate { period, burst } = self.last_reply.rate;
        match &self.mode {
            Mode::Standalone(Some(standalone)) => {
                let limiter = standalone.limiter();
                QuotaStatus {
                    per_second: Some(limiter.quota().per_second()),
                    tokens: Some(limiter.tokens(now)),
                    paused,
                }
            }
            Mode::Shared if period > 0 => {
                let owed = self.last_reply.paid.map_or(0.0, |paid| paid.saturating_duration_since(now).as_secs_f64());
                let per_second = 1e6 / period as f64;
                QuotaStatus { per_second: Some(per_second), tokens: Some(burst as f64 - owed * per_second), paused }
            }
            _ => QuotaStatus { paused, ..local },
        }
    }
}
