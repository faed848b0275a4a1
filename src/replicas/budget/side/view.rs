//! What a replica knows about the budget, for estimates of waits: when tokens come, and how many there are.

use std::time::Duration;

use super::{Replica, Side};
use crate::accounts::Team;
use crate::budget::{Parts, QuotaSource, QuotaStatus};
use crate::core::clock::Instant;
use crate::replicas::budget::ledger::Spend;

impl Replica {
    /// The later of the pauses that this replica and others have learnt of.
    pub(super) fn resumes(&self, now: Instant) -> Instant {
        let own = now + self.local.status(now).paused;
        self.known.paused_until.map_or(own, |until| until.max(own))
    }

    /// When the `n`-th token is expected here. Each replica whose queue is as long gets as many tokens meanwhile, and one
    /// with a shorter queue as many as it needs.
    pub(in crate::replicas::budget) fn nth_at(&self, n: u32, now: Instant) -> Instant {
        let resumes = self.resumes(now);
        if let Side::Alone(alone) = &self.side {
            let local = self.local.nth_at(n, now);
            return alone.as_ref().map_or(local, |alone| alone.limiter().nth_at(n, resumes).max(local));
        }
        let Spend { period, burst } = self.known.spend;
        let others = u64::from(self.living - 1).saturating_mul(n.into()).min(self.known.elsewhere.into());
        let all = u64::from(n).saturating_add(others);
        // Tokens that are held are already paid for.
        let all = all.saturating_sub(self.held.len() as u64);
        let paid = self.known.paid.map_or(resumes, |paid| paid.max(resumes));
        let from_resumes = Duration::from_micros(period.saturating_mul(all).min(u64::MAX / 1000));
        let depth = Duration::from_micros(period.saturating_mul(burst).min(u64::MAX / 1000));
        let paid_at = (paid - resumes).saturating_add(from_resumes).saturating_sub(depth);
        (resumes + paid_at.min(Duration::from_secs(366 * 86_400))).max(self.local.nth_at(n, now))
    }

    pub(in crate::replicas::budget) fn team_ready_at(&self, team: &Team) -> Option<Instant> {
        self.known.teams.get(&team.name).copied()
    }

    /// Into how many parts what replicas have in common is divided now.
    pub(in crate::replicas::budget) fn parts(&self) -> Parts {
        let count = match self.side {
            Side::Alone(_) => self.all(),
            _ => 1,
        };
        Parts { count, emptied: self.changed_side }
    }

    pub(in crate::replicas::budget) fn concurrency(&self, now: Instant) -> u32 {
        let replicas = match self.side {
            Side::Shared => self.living,
            _ => self.all(),
        };
        (self.local.concurrency(now) / replicas).max(1)
    }

    pub(in crate::replicas::budget) fn status(&self, now: Instant) -> QuotaStatus {
        let local = self.local.status(now);
        let paused = self.resumes(now).saturating_duration_since(now);
        let Spend { period, burst } = self.known.spend;
        match &self.side {
            Side::Alone(Some(alone)) => {
                let limiter = alone.limiter();
                QuotaStatus {
                    per_second: Some(limiter.quota().per_second()),
                    tokens: Some(limiter.tokens(now)),
                    paused,
                }
            }
            Side::Shared if period > 0 => {
                let owed = self.known.paid.map_or(0.0, |paid| paid.saturating_duration_since(now).as_secs_f64());
                let per_second = 1e6 / period as f64;
                QuotaStatus { per_second: Some(per_second), tokens: Some(burst as f64 - owed * per_second), paused }
            }
            _ => QuotaStatus { paused, ..local },
        }
    }
}
