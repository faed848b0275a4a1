//! What one replica knows of the common budget: the tokens that it holds, and the store's last reply. Nothing here
//! waits, and time is passed in.

mod circuit;
mod estimates;
mod fallback;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use self::circuit::SharedCircuit;
use super::ledger::{AHEAD, LONGEST, LedgerReply, LedgerRequest, Refund, TeamDemand, TokenRate};
use super::prefetch::Prefetch;
use super::standalone::StandaloneShare;
use super::store_deadline::StoreDeadline;
use crate::accounts::Team;
use crate::budget::{CommonCircuit, Demand, Grant, Limits, LocalQuota, QuotaSource, Turn};
use crate::core::clock::Instant;
use crate::core::limiter::Quota;
use crate::replicas::clock::micros;
use crate::request::key::Key;
use crate::semantics::upstream_headers::RateLimitHeaders;

/// A token that is not used so long after its time is given back.
const HOLD_LIMIT: Duration = Duration::from_millis(50);
/// A permit that was not used is given back within this time.
const REFUND_WINDOW: Duration = Duration::from_millis(500);
/// How often a lowered rate that changes slowly is reported to the store.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Calls that come at once, at several replicas, have been told to all of them after this time: some round trips, and the
/// time in which busy processes read what has come.
const QUEUE_EXCHANGE: Duration = Duration::from_millis(200);

/// Where the tokens come from.
#[derive(Debug)]
enum Mode {
    /// The process has started: from the store, if it is reached by this time.
    Starting(Instant),
    /// From the store.
    Shared,
    /// From this replica's share; `None` without a limit.
    Standalone(Option<StandaloneShare>),
}

impl Turn {
    fn is_for(&self, demand: &Demand) -> bool {
        self.team == demand.team.name && self.background == demand.background
    }
}

/// A token that the store has granted.
#[derive(Debug)]
struct HeldToken {
    turn: Turn,
    due: Instant,
    refund: Refund,
}

/// What the store replied last.
#[derive(Debug, Default)]
struct LastReply {
    rate: TokenRate,
    /// Tokens that are taken are paid for then.
    paid: Option<Instant>,
    paused_until: Option<Instant>,
    granted: Option<u64>,
    elsewhere: u32,
    /// When the own limit of a team has a token.
    teams: HashMap<Arc<str>, Instant>,
}

/// One replica's state of the common budget.
#[derive(Debug)]
pub(super) struct ReplicaState {
    mode: Mode,
    /// It has to agree to each token, and learns from responses.
    local: LocalQuota,
    /// The longest pause and the longest opening of the circuit that are believed.
    longest_pause: Duration,
    longest_open: Duration,
    is_up: bool,
    /// No configuration here has the account: it is asked for only while calls wait.
    is_retired: bool,
    configured: u32,
    living: u32,
    demand: Vec<Demand>,
    /// The calls of clients in this replica's queue.
    queue: u32,
    /// The same number, as it was last reported to the store.
    reported_queue: u32,
    /// Queues, here or elsewhere, have grown so much that estimates are too early until then.
    queues_known_at: Option<Instant>,
    /// The teams that wait here, as the store knows it.
    registered: Vec<Turn>,
    held: VecDeque<HeldToken>,
    /// Tokens that were used recently, oldest first.
    used: VecDeque<(Refund, Instant)>,
    refunds: Vec<Refund>,
    /// What is left of what was spent standalone, once this replica shares again.
    spent_standalone: u64,
    last_reply: LastReply,
    /// The rate that was last reported to the store, and since when.
    reported_rate: Option<(TokenRate, Instant)>,
    circuit: SharedCircuit,
    timeout: Duration,
    /// The store's clock when it answered last, in microseconds, and when that was here. It is never later than it was.
    store_time: Option<(u64, Instant)>,
    prefetch: Prefetch,
    /// When the ask that is under way began.
    asked: Option<Instant>,
    /// How many asks in a row were not answered.
    failures: u32,
    store_deadline: StoreDeadline,
    /// When this replica last became standalone, or shared again.
    mode_changed: Option<Instant>,
    /// Nothing is asked before, unless there is news.
    ask_at: Instant,
    has_news: bool,
    /// Nothing is asked before, also if there is news: the store has failed.
    retry_at: Option<Instant>,
    /// Of teams, by their names.
    pseudonyms: HashMap<Arc<str>, String>,
}

impl ReplicaState {
    /// A full bucket. An ask takes `timeout` at most. It does not become standalone before twice that time has passed.
    pub(super) fn new(limits: &Limits, configured: u32, timeout: Duration, now: Instant) -> Self {
        Self {
            mode: Mode::Starting(now + timeout * 2),
            timeout,
            store_time: None,
            local: LocalQuota::new(limits, now),
            longest_pause: limits.max_pause,
            longest_open: limits.circuit.open,
            is_up: false,
            is_retired: false,
            configured,
            living: 1,
            demand: Vec::new(),
            queue: 0,
            reported_queue: 0,
            queues_known_at: None,
            registered: Vec::new(),
            held: VecDeque::new(),
            used: VecDeque::new(),
            refunds: Vec::new(),
            spent_standalone: 0,
            last_reply: LastReply::default(),
            reported_rate: None,
            circuit: SharedCircuit::default(),
            prefetch: Prefetch::default(),
            asked: None,
            failures: 0,
            store_deadline: StoreDeadline::new(timeout),
            mode_changed: None,
            ask_at: now,
            has_news: true,
            retry_at: None,
            pseudonyms: HashMap::new(),
        }
    }

    /// The upstream answered something else than 429. Returns whether that brought a pause, which others have to know.
    pub(super) fn accepted(&mut self, stated: &RateLimitHeaders, now: Instant) -> bool {
        let before = self.local.status(now).paused;
        self.local.accepted(stated, now);
        let is_paused = self.local.status(now).paused > before;
        self.has_news |= is_paused;
        is_paused
    }

    pub(super) fn circuit_opened(&mut self, until: Instant) {
        self.circuit.opened(until);
        self.has_news = true;
    }

    pub(super) fn circuit_closed(&mut self) {
        self.circuit.closed();
        self.has_news = true;
    }

    pub(super) fn probe_failed(&mut self, query: Key) {
        self.circuit.probe_failed(query);
        self.has_news = true;
    }

    pub(super) fn common_circuit(&mut self) -> Option<CommonCircuit> {
        self.circuit.common()
    }

    /// How many replicas were last seen.
    pub(super) fn set_replicas(&mut self, living: u32) {
        self.living = living.max(1);
    }

    /// When the store is asked next, if there is no news before.
    pub(super) fn next_ask(&self, now: Instant) -> Option<Instant> {
        match self.mode {
            Mode::Starting(until) if !self.is_up => Some(until),
            _ if self.is_dormant() => None,
            _ if !self.is_up => Some(now + LONGEST),
            _ => Some(self.retry_at.unwrap_or(self.ask_at)),
        }
    }

    /// Nothing is asked, unless there is news.
    fn is_dormant(&self) -> bool {
        self.is_retired && self.demand.is_empty() && self.held.is_empty()
    }

    /// No configuration here has the account any more, until its limits are set again.
    pub(super) fn retire(&mut self) {
        self.is_retired = true;
    }

    /// What to ask now, if anything.
    pub(super) fn next_request(
        &mut self,
        now: Instant,
        pseudonym: impl Fn(&'static str, &[u8]) -> String,
    ) -> Option<LedgerRequest> {
        let is_idle = (now < self.ask_at || self.is_dormant()) && !self.has_news;
        if !self.is_up || is_idle || self.retry_at.is_some_and(|at| now < at) {
            return None;
        }
        self.local.update(now);
        self.has_news = false;
        let wanted = self.wanted(now);
        let calls = wanted.iter().map(|(_, calls)| *calls).max().unwrap_or(0);
        let most = calls.min(u32::try_from(self.free_slots()).unwrap_or(u32::MAX));
        let mut teams = Vec::with_capacity(wanted.len());
        for (demand, calls) in wanted {
            let Demand { team, background, .. } = demand;
            let pseudonym = self
                .pseudonyms
                .entry(Arc::clone(&team.name))
                .or_insert_with(|| pseudonym("team", team.name.as_bytes()))
                .clone();
            let limit = team.upstream.map(|rate| token_rate(&Quota::new(rate, rate.count()))).unwrap_or_default();
            teams.push(TeamDemand { team: pseudonym, background, weight: team.weight, calls, limit });
        }
        self.asked = Some(now);
        self.reported_queue = self.queue;
        self.store_deadline.begun(now);
        let mut request = LedgerRequest {
            rate: self.rate_to_report(now),
            pause: self.local.status(now).paused,
            most,
            latest: self.latest(now),
            round_trip: self.prefetch.round_trip(),
            longest_pause: self.longest_pause,
            longest_open: self.longest_open,
            spent_standalone: self.spent_standalone(now),
            queue: self.queue,
            refunds: std::mem::take(&mut self.refunds),
            teams,
            ..LedgerRequest::default()
        };
        self.circuit.add_to(&mut request, |query| pseudonym("query", query.as_bytes()), now);
        Some(request)
    }

    /// Until when an answer is waited for, on the store's clock.
    fn latest(&self, now: Instant) -> Option<u64> {
        let (then, at) = self.store_time?;
        Some(then.saturating_add(micros(now.saturating_duration_since(at) + self.timeout)))
    }

    /// The calls that tokens are wanted for now: those that wait and have none yet. None while this replica could not
    /// use a token, so that it is not kept from others.
    fn wanted(&self, now: Instant) -> Vec<(Demand, u32)> {
        let may_use = self.local.nth_at(1, now) <= now + self.prefetch.ahead() && self.free_slots() > 0;
        if !may_use || matches!(self.mode, Mode::Standalone(_)) {
            return Vec::new();
        }
        let unmet = self.demand.iter().map(|demand| {
            let held = self.held.iter().filter(|held| held.turn.is_for(demand)).count();
            (demand.clone(), demand.calls.saturating_sub(u32::try_from(held).unwrap_or(u32::MAX)))
        });
        unmet.filter(|(_, calls)| *calls > 0).collect()
    }

    /// How many more tokens may be held.
    fn free_slots(&self) -> usize {
        self.prefetch.most(self.last_reply.rate.period).saturating_sub(self.held.len())
    }

    /// Whether the store has to know that other teams wait here now. One that waits no longer must not keep others from
    /// their tokens.
    fn check_demand(&mut self, now: Instant) {
        let wanted = self.wanted(now);
        let is_known = |(demand, _): &(Demand, u32)| self.registered.iter().any(|turn| turn.is_for(demand));
        self.has_news |= wanted.len() != self.registered.len() || !wanted.iter().all(is_known);
        if wanted.is_empty() && !self.demand.is_empty() {
            // As soon as this replica could use a token.
            self.ask_at = self.ask_at.min(self.local.nth_at(1, now).max(now + AHEAD));
        }
    }

    /// The rate to report to the store. A learnt rate rises all the time, so a new one is reported only from time to
    /// time.
    fn rate_to_report(&mut self, now: Instant) -> TokenRate {
        let own = self.local.quota().map(|quota| token_rate(&quota)).unwrap_or_default();
        match self.reported_rate {
            Some((told, at)) if own.burst == told.burst && own.period <= told.period && now < at + REPORT_INTERVAL => {
                told
            }
            _ => {
                self.reported_rate = Some((own, now));
                own
            }
        }
    }

    /// The store has answered.
    pub(super) fn answered(&mut self, request: &LedgerRequest, reply: &LedgerReply, now: Instant) {
        (self.failures, self.retry_at) = (0, None);
        self.store_deadline.answered();
        self.store_time = Some((reply.now, now));
        if let Some(asked) = self.asked.take() {
            self.prefetch.answered(now.saturating_duration_since(asked));
        }
        match self.mode {
            Mode::Starting(_) => self.mode = Mode::Shared,
            Mode::Shared => {}
            Mode::Standalone(_) => {
                self.local.update(now);
                self.local.drain(now);
                self.spent_standalone = self.spent_standalone(now);
                (self.mode, self.mode_changed) = (Mode::Shared, Some(now));
                self.has_news = true;
            }
        }
        self.spent_standalone = self.spent_standalone.saturating_sub(request.spent_standalone);
        let until = |rest: Duration| (!rest.is_zero()).then(|| now + rest);
        if let Some(before) = self.last_reply.granted {
            let own = reply.tokens.len() as u64;
            if reply.granted < before {
                // The store has lost its data, and with it that these are paid for.
                self.held.clear();
            }
            let others = reply.granted.saturating_sub(before).saturating_sub(own);
            self.local.others_took(u32::try_from(others).unwrap_or(u32::MAX).min(10_000), now);
        }
        self.last_reply.granted = Some(reply.granted);
        self.last_reply.rate = reply.rate;
        self.last_reply.paid = until(reply.owed);
        self.last_reply.paused_until = until(reply.pause.min(self.longest_pause));
        self.circuit.learn(request, reply, self.longest_open, now);
        self.queue_changed(self.last_reply.elsewhere, reply.elsewhere, now);
        self.last_reply.elsewhere = reply.elsewhere;
        let mut asked: Vec<Turn> = Vec::with_capacity(request.teams.len());
        for (ask, wait) in request.teams.iter().zip(&reply.teams) {
            let Some((name, _)) = self.pseudonyms.iter().find(|(_, pseudonym)| **pseudonym == ask.team) else {
                continue;
            };
            asked.push(Turn { team: Arc::clone(name), background: ask.background });
            if ask.limit.period > 0 {
                self.last_reply.teams.insert(Arc::clone(name), now + *wait);
            }
        }
        let mut unmet: Vec<u32> = request.teams.iter().map(|ask| ask.calls).collect();
        for token in &reply.tokens {
            if let (Some(turn), Some(ask), Some(unmet)) =
                (asked.get(token.team), request.teams.get(token.team), unmet.get_mut(token.team))
            {
                *unmet = unmet.saturating_sub(1);
                let refund = Refund::of(ask, token.at);
                self.held.push_back(HeldToken { turn: turn.clone(), due: now + token.after, refund });
            }
        }
        self.registered = asked.into_iter().zip(unmet).filter(|(_, unmet)| *unmet > 0).map(|(turn, _)| turn).collect();
        // Those for the end of the pause are kept: they would be granted again at once.
        if let Some(until) = self.last_reply.paused_until {
            self.give_back(|held| held.due < until);
        }
        self.ask_at = now + if self.registered.is_empty() { LONGEST } else { reply.wait.min(LONGEST) };
        self.check_demand(now);
    }

    /// The calls that could be sent, and how many of clients are queued. Returns whether the store has to be asked at
    /// once.
    pub(super) fn set_demand(&mut self, demand: Vec<Demand>, queue: u32, now: Instant) -> bool {
        let (ask_at, was_dormant) = (self.ask_at, self.is_dormant());
        (self.demand, self.queue) = (demand, queue);
        self.has_news |= was_dormant && !self.is_dormant();
        // Clients are told when to come back by the queues of all replicas.
        self.has_news |= self.queue_changed(self.reported_queue, queue, now);
        self.check_demand(now);
        self.has_news || self.ask_at < ask_at
    }

    /// A queue, here or elsewhere, had `before` calls and has `queue` now. Returns whether that is another length.
    fn queue_changed(&mut self, before: u32, queue: u32, now: Instant) -> bool {
        let is_another = queue.abs_diff(before) > before / 16 + 2;
        if is_another && queue > before {
            self.queues_known_at = Some(now + QUEUE_EXCHANGE);
        }
        is_another
    }

    pub(super) fn set_limits(&mut self, limits: &Limits, now: Instant) {
        self.local.set_limits(limits, now);
        (self.longest_pause, self.longest_open) = (limits.max_pause, limits.circuit.open);
        (self.is_retired, self.has_news) = (false, true);
    }

    /// Applies what changes with time. Returns whether tokens have to be given back.
    pub(super) fn update(&mut self, now: Instant) -> bool {
        self.local.update(now);
        let share = self.share();
        if let Mode::Standalone(standalone) = &mut self.mode {
            match (standalone.as_mut(), share) {
                (Some(standalone), Some(share)) => standalone.set_quota(share, now),
                (_, share) => *standalone = share.map(|share| StandaloneShare::new(share, now)),
            }
        }
        self.used.retain(|(_, at)| *at + REFUND_WINDOW > now);
        self.give_back(|held| held.due + HOLD_LIMIT < now)
    }

    /// Gives back tokens that are held.
    fn give_back(&mut self, which: impl Fn(&HeldToken) -> bool) -> bool {
        let before = self.refunds.len();
        let refunds = &mut self.refunds;
        self.held.retain(|held| {
            let goes = which(held);
            if goes {
                refunds.push(held.refund.clone());
            }
            !goes
        });
        let any = self.refunds.len() > before;
        self.has_news |= any;
        any
    }

    pub(super) fn ready(&self, now: Instant) -> Grant {
        let at = match (&self.mode, self.held.front()) {
            (Mode::Standalone(standalone), _) => {
                let own = standalone.as_ref().map_or(now, |standalone| standalone.limiter().nth_at(1, now));
                own.max(self.local.nth_at(1, now)).max(self.resumes(now))
            }
            (_, Some(held)) => held.due.max(self.local.nth_at(1, now)).max(self.resumes(now)),
            // The account is told when there is one.
            (_, None) => self.resumes(now).max(now + LONGEST),
        };
        if at <= now { Grant::Now } else { Grant::NotBefore(at) }
    }

    pub(super) fn take(&mut self, team: &Team, now: Instant) -> Grant {
        if let not_before @ Grant::NotBefore(_) = self.ready(now) {
            return not_before;
        }
        let is_for = |held: &HeldToken| held.turn.team == team.name && held.due <= now;
        let place = self.held.iter().position(is_for);
        if let Mode::Standalone(standalone) = &self.mode {
            if standalone.as_ref().is_none_or(|standalone| standalone.try_take(now)) {
                return self.local.take(team, now);
            }
        } else if let Some(place) = place
            && self.local.take(team, now) == Grant::Now
            && let Some(held) = self.held.remove(place)
        {
            self.used.push_back((held.refund, now));
            return Grant::Now;
        }
        Grant::NotBefore(now + LONGEST)
    }

    /// A permit was not used. Which of the recent ones is not known: the oldest is the most that was certainly taken.
    /// Its team gets it back only if all of them were of that team.
    pub(super) fn refund(&mut self, now: Instant) {
        match &self.mode {
            Mode::Standalone(standalone) => {
                if let Some(standalone) = standalone {
                    standalone.refund();
                    self.local.refund();
                }
            }
            _ => {
                self.used.retain(|(_, at)| *at + REFUND_WINDOW > now);
                if let Some((refund, _)) = self.used.pop_front() {
                    self.local.refund();
                    let is_known = self.used.iter().all(|(other, _)| other.team == refund.team);
                    self.refunds.push(if is_known { refund } else { refund.of_unknown_team() });
                    self.has_news = true;
                }
            }
        }
    }

    /// A call waits from now on, whose request has `waited` for the store before.
    pub(super) fn arrived(&mut self, waited: Duration, now: Instant) {
        self.store_deadline.arrived(waited, now);
    }

    /// No call waits.
    pub(super) fn idle(&mut self) {
        self.store_deadline.idle();
    }

    pub(super) fn turn(&self) -> Option<Turn> {
        match self.mode {
            Mode::Standalone(_) => None,
            _ => self.held.front().map(|held| held.turn.clone()),
        }
    }

    pub(super) fn decline(&mut self) {
        if let Some(held) = self.held.pop_front() {
            self.refunds.push(held.refund);
            self.has_news = true;
        }
    }

    pub(super) fn rate_limited(
        &mut self,
        asked: Option<Duration>,
        stated: &RateLimitHeaders,
        sent: Instant,
        in_flight: u32,
        now: Instant,
    ) -> Option<Duration> {
        let paused = self.local.rate_limited(asked, stated, sent, in_flight, now);
        self.local.update(now);
        self.has_news = true;
        self.give_back(|_| true);
        paused
    }
}

fn token_rate(quota: &Quota) -> TokenRate {
    TokenRate { period: quota.micros(), burst: quota.burst() }
}
