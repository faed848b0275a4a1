//! A team's own upstream limit, and the places of the clients that it refused.
//!
//! A client that is refused is told when there will be a token that no client before it needs. Its place is kept until a
//! little after that time: the same query then finds its token, however many others arrive meanwhile. The token itself is
//! taken when the call is sent, so that the limit holds whenever clients come back. A client that finds the tokens of
//! that time used up, because others were late, waits for the next one.
//!
//! Not all clients come back. A place counts by the share of clients that recently did.

use std::time::Duration;

use super::quota::CommonTokens;
use crate::core::clock::Instant;
use crate::core::error::whole_seconds;
use crate::core::limiter::{Limiter, Quota};
use crate::request::key::Key;

/// The answer to a call that needs a token of its team.
#[derive(Debug)]
pub(super) enum TeamToken {
    /// It is taken from this bucket.
    Taken(Limiter),
    /// The call has come back when it was told, and its token will be there at this time, before its deadline.
    Soon(Instant),
    /// There is none before this time.
    NotBefore(Instant),
}

/// Where the tokens of a team come from now.
#[derive(Debug)]
pub(super) struct TeamBucket {
    /// The team's limit, or this process's part of it.
    limiter: Limiter,
    /// What processes know that share the limit.
    common: Option<CommonTokens>,
    /// The team's calls that have a token of `limiter` and wait for one of the processes' common limit.
    queued: u32,
}

impl TeamBucket {
    pub(super) fn new(limiter: Limiter, common: Option<CommonTokens>, queued: u32) -> Self {
        Self { limiter, common, queued }
    }

    /// When the `n`-th token is expected, counted from 1.
    fn nth_at(&self, n: u32, now: Instant) -> Instant {
        let own = self.limiter.nth_at(n, now);
        let period = Duration::from_secs_f64(1.0 / self.limiter.quota().per_second());
        self.common.map_or(own, |common| common.nth_at(n.saturating_add(self.queued), period).max(own))
    }

    /// Takes the `n`-th token from now, if it is there.
    fn take(&self, n: u32, now: Instant) -> Result<Limiter, Instant> {
        match self.nth_at(n, now) {
            at if at <= now && self.limiter.try_take(now) => Ok(self.limiter.clone()),
            at => Err(at),
        }
    }

    /// Tokens now, with the fraction of the next one.
    pub(super) fn tokens(&self, now: Instant) -> f64 {
        self.limiter.tokens(now)
    }

    /// When the next token is expected.
    pub(super) fn next_at(&self, now: Instant) -> Instant {
        self.limiter.nth_at(1, now)
    }
}

/// What a team may send upstream by its own limit.
#[derive(Debug)]
pub(super) struct TeamLimit {
    limiter: Limiter,
    /// When it was last [emptied](super::quota::Parts::emptied).
    emptied: Option<Instant>,
    /// In the order in which they were told to come back.
    places: Vec<Place>,
    /// The share of recent places whose clients came back.
    return_rate: f64,
}

/// The place of a client that was told to come back.
#[derive(Debug)]
struct Place {
    /// The query, by which it is recognised.
    key: Key,
    returns_at: Instant,
    expires: Instant,
    /// It has come back, and waits for its token until this time.
    waits_until: Option<Instant>,
}

impl Place {
    /// Clients come back late rather than early. So long a token waits for one.
    const GRACE: Duration = Duration::from_secs(2);

    fn waits(&self, now: Instant) -> bool {
        self.waits_until.is_some_and(|until| until >= now)
    }

    /// How many tokens are expected to be needed for it.
    fn expected(&self, return_rate: f64, now: Instant) -> f64 {
        match () {
            () if self.waits(now) => 1.0,
            () if now <= self.returns_at + Self::GRACE => return_rate,
            () => 0.0,
        }
    }
}

impl TeamLimit {
    /// The weight of one place in the average `return_rate`.
    const SMOOTHING: f64 = 1.0 / 16.0;

    /// A full bucket.
    pub(super) fn new(quota: Quota, now: Instant) -> Self {
        Self { limiter: Limiter::full(quota, now), emptied: None, places: Vec::new(), return_rate: 1.0 }
    }

    /// One of `count` parts of the bucket, which was last emptied at this time.
    pub(super) fn part(&mut self, quota: Quota, count: u32, emptied: Option<Instant>, now: Instant) -> Limiter {
        match emptied.filter(|_| self.emptied != emptied) {
            // Another bucket, so that a token that was taken before does not come back into this one.
            Some(at) => (self.limiter, self.emptied) = (Limiter::empty_part(quota, count, at), emptied),
            None => self.limiter.set_quota(quota, now),
        }
        self.limiter.part(count)
    }

    /// Takes a token for a client's call, which is of no use after `useful_until`. This uses up the call's place.
    pub(super) fn take(&mut self, key: &Key, bucket: &TeamBucket, useful_until: Instant, now: Instant) -> TeamToken {
        self.remove_expired(now);
        let place = self.position(key);
        let is_due = place.is_some_and(|place| self.places[place].returns_at <= now);
        let n = match place {
            // Others that are late have lost their turn for now.
            Some(place) if is_due => self.places[..place].iter().filter(|place| place.waits(now)).count() as u32 + 1,
            _ => self.first_free(place, bucket, now),
        };
        match (bucket.take(n, now), place) {
            (Ok(taken), place) => {
                if let Some(place) = place {
                    self.places.remove(place);
                    self.return_rate += (1.0 - self.return_rate) * Self::SMOOTHING;
                }
                TeamToken::Taken(taken)
            }
            (Err(at), Some(place)) if is_due && at <= useful_until => {
                self.places[place].waits_until = Some(at);
                TeamToken::Soon(at)
            }
            (Err(_), Some(place)) if !is_due => TeamToken::NotBefore(self.places[place].returns_at),
            (Err(at), _) => TeamToken::NotBefore(at),
        }
    }

    /// Takes a token for a refresh. Half of the burst is left to clients who may come at any time, and all of it to those
    /// who were told to come back.
    pub(super) fn take_for_refresh(&mut self, bucket: &TeamBucket, now: Instant) -> TeamToken {
        self.remove_expired(now);
        let for_clients = u32::try_from(bucket.limiter.quota().burst() / 2).unwrap_or(u32::MAX);
        let expected: f64 = self.places.iter().map(|place| place.expected(self.return_rate, now)).sum();
        if expected.round() > 0.0 || bucket.limiter.whole_tokens(now) <= for_clients.into() {
            return TeamToken::NotBefore(bucket.nth_at(for_clients.saturating_add(1), now));
        }
        bucket.take(1, now).map_or_else(TeamToken::NotBefore, TeamToken::Taken)
    }

    /// When there is a token that no place needs.
    pub(super) fn free_at(&self, bucket: &TeamBucket, now: Instant) -> Instant {
        bucket.nth_at(self.first_free(None, bucket, now), now)
    }

    /// Keeps the place of a client that is told to come back for a token that is there at this time. At most `limit`
    /// places are kept.
    pub(super) fn reserve(&mut self, key: Key, at: Instant, limit: u32, now: Instant) {
        if let Some(known) = self.position(&key) {
            if self.places[known].returns_at >= at {
                return;
            }
            self.places.remove(known);
        }
        if self.places.len() >= limit as usize {
            return;
        }
        let wait = whole_seconds(at.saturating_duration_since(now));
        let returns_at = now + wait;
        let place = Place { key, returns_at, expires: returns_at + (wait / 4).max(Place::GRACE), waits_until: None };
        let behind = self.places.partition_point(|other| other.returns_at <= returns_at);
        self.places.insert(behind, place);
    }

    /// The first token, counted from 1, with which no client has to wait longer than it was told. `except` is the place of
    /// the call itself.
    fn first_free(&self, except: Option<usize>, bucket: &TeamBucket, now: Instant) -> u32 {
        let (mut free, mut before) = (1, 0.0);
        for (_, place) in self.places.iter().enumerate().filter(|(number, _)| Some(*number) != except) {
            before += place.expected(self.return_rate, now);
            let needed = before.round() as u32;
            // One more call before this one, and it would be late.
            if needed > 0 && bucket.nth_at(needed + 1, now) > place.returns_at {
                free = needed + 1;
            }
        }
        free
    }

    fn position(&self, key: &Key) -> Option<usize> {
        self.places.iter().position(|place| place.key == *key)
    }

    fn remove_expired(&mut self, now: Instant) {
        let return_rate = &mut self.return_rate;
        self.places.retain(|place| {
            let is_valid = now <= place.expires || place.waits(now);
            if !is_valid {
                *return_rate -= *return_rate * Self::SMOOTHING;
            }
            is_valid
        });
    }
}

#[cfg(test)]
mod tests;
