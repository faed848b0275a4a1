//! The script against a model of it, on a real server, in any order of what replicas do.
//!
//! The server's clock is replaced by a value that the test sets, so that both see the same time and hours pass at once.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::super::ledger::{AHEAD, ALIVE, COST, GRACE, LONGEST, RETRY};
use super::*;
use crate::budget::{LEAST_QUERIES, PROBE};
use crate::replicas::clock::micros;

/// A take is remembered for a refund until so many others came after it.
const REMEMBERED: usize = 64;

/// What a replica does.
#[derive(Debug, Clone)]
struct Step {
    /// Time since the step before, in microseconds; negative where another server took over.
    passed: i64,
    replica: usize,
    rate: TokenRate,
    pause: Duration,
    open: Duration,
    /// Whether its circuit takes part in the opening that it knows.
    takes_part: bool,
    /// Whether its probe ended that.
    ends: bool,
    /// A query whose probe failed.
    failed_probe: Option<u8>,
    /// By how much the script runs after the latest time, if it does.
    late: Option<i64>,
    most: u32,
    spent_standalone: u64,
    /// Which of its tokens it gives back, counted from the last, if any.
    refund: Option<usize>,
    queue: u32,
    /// For each team, calls of clients and refreshes that wait.
    calls: [(u32, u32); 3],
}

/// Teams that wait at a replica, each with its last token there.
type Waits = Vec<(TeamDemand, u64)>;

/// The budget as it is defined: all takes are kept, and what is owed is computed from them.
#[derive(Default)]
struct Model {
    limits: BTreeMap<usize, (i64, TokenRate)>,
    rate: TokenRate,
    read: Option<i64>,
    base: i64,
    takes: Vec<i64>,
    paused: i64,
    open: i64,
    opened: i64,
    probed: i64,
    failing: Vec<(String, i64)>,
    virtual_time: u64,
    granted: u64,
    /// Until when each counts, its queue, and who waits.
    waiting: BTreeMap<usize, (i64, u32, Waits)>,
    starts: HashMap<(String, bool), u64>,
    tats: HashMap<String, i64>,
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap()
}

/// When a token is available of a bucket with this TAT.
fn next_at(tat: i64, rate: TokenRate, now: i64) -> i64 {
    now.max(tat + signed(rate.period) - signed(rate.period * rate.burst))
}

impl Model {
    fn tat(&self) -> i64 {
        self.takes.iter().fold(self.base, |tat, at| tat.max(*at) + signed(self.rate.period))
    }

    fn read_limits(&mut self, now: i64) {
        self.limits.retain(|_, (until, _)| *until >= now);
        let limited = || self.limits.values().map(|(_, rate)| rate).filter(|rate| rate.period > 0);
        let period = limited().map(|rate| rate.period).max().unwrap_or(0);
        let burst = limited().map(|rate| rate.burst).min().unwrap_or(1).max(1);
        if period != self.rate.period {
            let mut tat = self.tat();
            if tat > now && self.rate.period > 0 && period > 0 {
                let owed = i128::from(tat - now) * i128::from(period);
                let old = i128::from(self.rate.period);
                tat = now + i64::try_from((owed + old - 1) / old).unwrap();
            }
            (self.base, self.takes) = (tat, Vec::new());
        }
        self.rate = TokenRate { period, burst };
        self.read = Some(now);
    }

    fn open_until(&mut self, until: i64, now: i64) {
        (self.opened, self.open, self.probed) = (now.max(self.opened + 1), until, 0);
        self.failing.clear();
    }

    fn is_half_open(&self, now: i64) -> bool {
        self.open > 0 && self.open <= now
    }

    fn hear_of_circuit(&mut self, request: &LedgerRequest, told: i64, now: i64) {
        if self.open > 0 && request.ended.map(signed) == Some(self.opened) {
            self.open = 0;
        }
        let (opening, until) = (request.opening.map_or(-1, signed), told + signed(micros(request.open)));
        if opening > self.opened {
            (self.opened, self.open) = (opening, self.open.max(until).max(1));
        } else if until > now && (opening == 0 || (opening == self.opened && self.open > 0)) {
            if self.open > now {
                self.open = self.open.max(until);
            } else {
                self.open_until(until, now);
            }
        }
        let longest = now + signed(micros(request.longest_open));
        if self.is_half_open(now) {
            for query in &request.failed_probes {
                self.failing.retain(|(known, _)| known != query);
                self.failing.push((query.clone(), longest));
                self.probed = 0;
            }
            self.failing.retain(|(_, until)| (now + 1..=longest).contains(until));
            if self.failing.len() >= LEAST_QUERIES {
                self.open_until(longest, now);
            }
        } else {
            self.failing.clear();
        }
        self.open = self.open.min(longest);
        let most = now + signed(micros(2 * LONGEST + PROBE));
        self.probed = if self.open > 0 { self.probed.min(most) } else { 0 };
    }

    fn ask(&mut self, replica: usize, request: &LedgerRequest, now: i64) -> LedgerReply {
        let latest = request.latest.map_or(i64::MAX, signed);
        let (is_late, told) = (now > latest, now.min(latest));
        let most = if is_late { 0 } else { request.most as usize };
        let behind = self.read.map_or(0, |read| (read - now).max(0));
        self.paused = (self.paused - behind).max(told + signed(micros(request.pause)));
        if self.open > 0 {
            (self.open, self.probed) = ((self.open - behind).max(1), self.probed - behind);
        }
        if behind > 0 {
            (self.base, self.takes) = ((self.tat() - behind).max(0), Vec::new());
            (self.limits, self.waiting) = Default::default();
            (self.starts, self.tats) = Default::default();
        }
        self.paused = self.paused.min(now + signed(micros(request.longest_pause)));
        self.hear_of_circuit(request, told, now);
        let said = self.limits.insert(replica, (now + signed(micros(ALIVE)), request.rate));
        let is_same = said.is_some_and(|(_, said)| said == request.rate);
        if !is_same || behind > 0 || self.read.is_none_or(|read| now >= read + 1_000_000) {
            self.read_limits(now);
        }
        if request.spent_standalone > 0 {
            let (paid, period) = (self.tat().max(now), signed(self.rate.period));
            let spent = (paid + signed(request.spent_standalone) * period).min(now + signed(self.rate.burst) * period);
            (self.base, self.takes) = (paid.max(spent), Vec::new());
        }
        for Refund { at, team, background, weight, limit } in &request.refunds {
            let recent = self.takes.len().saturating_sub(REMEMBERED);
            if let Some(place) = self.takes[recent..].iter().position(|take| *take == signed(*at)) {
                self.takes.remove(recent + place);
                self.probed = 0;
                if let Some(start) = self.starts.get_mut(&(team.clone(), *background)) {
                    *start = start.saturating_sub(COST / u64::from(*weight));
                }
                if let Some(tat) = self.tats.get_mut(team) {
                    *tat = (*tat - signed(limit.period)).max(0);
                }
            }
        }
        // Where the burst has become less, no more is owed than empties the bucket.
        let empty = now + 2 * signed(micros(LONGEST)) + signed(self.rate.period * self.rate.burst);
        if self.tat() > empty {
            (self.base, self.takes) = (empty, Vec::new());
        }
        let own = self.waiting.remove(&replica).map(|(.., asks)| asks).unwrap_or_default();
        // One that is later than any replica says does not count: the clock went back a little.
        let latest = now + signed(micros(LONGEST + GRACE + request.round_trip + S));
        self.waiting.retain(|_, (until, ..)| (now..=latest).contains(until));
        let takes_turns = request.round_trip <= AHEAD && self.rate.period >= micros(2 * AHEAD);
        let elsewhere: Vec<TeamDemand> =
            self.waiting.values().flat_map(|(.., asks)| asks.iter().map(|(ask, _)| ask.clone())).collect();
        let mut asks = request.teams.clone();
        let is_same =
            |one: &TeamDemand, other: &TeamDemand| one.team == other.team && one.background == other.background;
        let last_of =
            |ask: &TeamDemand| own.iter().find(|(own, _)| is_same(own, ask)).map_or(self.granted, |(_, last)| *last);
        let mut lasts: Vec<u64> = asks.iter().map(last_of).collect();
        let begun = self.granted;
        let limit_of = |team: &str| {
            let all = request.teams.iter().chain(&elsewhere).filter(|ask| ask.team == team);
            all.map(|ask| ask.limit).max_by_key(|limit| limit.period).unwrap_or_default()
        };
        let entry_virtual = self.virtual_time;
        let mut starts: HashMap<(String, bool), u64> = HashMap::new();
        for ask in asks.iter().chain(&elsewhere) {
            let name = (ask.team.clone(), ask.background);
            let start = self.starts.get(&name).copied().unwrap_or(0).max(entry_virtual);
            starts.insert(name, start);
        }
        let ahead = signed(micros(AHEAD + request.round_trip));
        let early = signed(micros(request.round_trip)).checked_div(signed(self.rate.period));
        let early = early.unwrap_or(i64::MAX).min(signed(most as u64));
        let (mut tokens, mut wait) = (Vec::new(), signed(micros(if is_late { RETRY } else { LONGEST })));
        while tokens.len() < most {
            let first = next_at(self.tat(), self.rate, now).max(self.paused).max(self.open).max(self.probed);
            let at = |team: &str| {
                let tat = self.tats.get(team).copied().unwrap_or(0);
                first.max(next_at(tat, limit_of(team), now))
            };
            let Some(soonest) = asks.iter().filter(|ask| ask.calls > 0).map(|ask| at(&ask.team)).min() else { break };
            let is_ready = |ask: &&TeamDemand| ask.calls > 0 && at(&ask.team) <= now + ahead;
            let start = |ask: &TeamDemand| starts[&(ask.team.clone(), ask.background)].max(self.virtual_time);
            let here = asks.iter().filter(is_ready).map(|ask| (ask, early * signed(COST / u64::from(ask.weight))));
            let all = here.chain(elsewhere.iter().filter(is_ready).map(|ask| (ask, 0)));
            let least = |of: bool| all.clone().filter(|(ask, _)| ask.background == of).map(|(ask, _)| start(ask)).min();
            let order =
                |(ask, early): (&TeamDemand, i64)| (ask.background, signed(start(ask)) - early, ask.team.clone());
            let Some((background, _, team)) = all.clone().map(order).min() else {
                wait = signed(micros(LONGEST)).min(soonest - ahead - now);
                break;
            };
            let is_turn = |ask: &TeamDemand| ask.team == team && ask.background == background && ask.calls > 0;
            let Some(place) = asks.iter().position(is_turn) else {
                wait = signed(micros(RETRY));
                break;
            };
            let there = self.waiting.values().flat_map(|(.., asks)| asks);
            let there = there.filter(|(ask, _)| is_same(ask, &asks[place])).map(|(_, last)| *last).min();
            let is_next_there = there.is_some_and(|least| least.min(begun) < lasts[place]);
            let since = self.tat() + signed(self.rate.period) - signed(self.rate.period * self.rate.burst);
            let since = since.max(self.paused).max(self.open).max(self.probed);
            let store_deadline = signed(micros(2 * RETRY)).min(signed(self.rate.period) / 16);
            if takes_turns && is_next_there && now < since + store_deadline {
                wait = signed(micros(RETRY));
                break;
            }
            let at = at(&team);
            let (least, start) = (least(background).unwrap(), start(&asks[place]));
            asks[place].calls -= 1;
            self.virtual_time = least;
            starts.insert((team.clone(), background), start + COST / u64::from(asks[place].weight));
            let limit = limit_of(&team);
            if limit.period > 0 {
                let tat = self.tats.entry(team).or_insert(0);
                *tat = (*tat).max(at) + signed(limit.period);
            }
            self.takes.push(at);
            self.granted += 1;
            lasts[place] = self.granted;
            if self.open > 0 {
                self.probed = at + signed(micros(PROBE));
            }
            let after = Duration::from_micros(u64::try_from(at - now).unwrap());
            tokens.push(GrantedToken { team: place, after, at: u64::try_from(at).unwrap() });
            wait = 0;
        }
        for ask in &asks {
            let name = (ask.team.clone(), ask.background);
            self.starts.insert(name.clone(), starts[&name]);
        }
        let left = asks.iter().zip(lasts).filter(|(ask, _)| ask.calls > 0 && !is_late);
        let left: Waits = left.map(|(ask, last)| (ask.clone(), last)).collect();
        let queues = self.waiting.values().map(|(_, queue, ..)| queue).sum();
        if !left.is_empty() || (request.queue > 0 && !is_late) {
            let wait = if left.is_empty() { signed(micros(LONGEST)) } else { wait };
            let until = now + wait + signed(micros(GRACE + request.round_trip));
            self.waiting.insert(replica, (until, request.queue, left));
        }
        self.open = if self.is_half_open(now) { 1 } else { self.open };
        for until in [&mut self.paused, &mut self.probed] {
            *until = if *until > now { *until } else { 0 };
        }
        let rest = |until: i64| Duration::from_micros(u64::try_from(until - now).unwrap_or(0));
        let of_team =
            |ask: &TeamDemand| rest(next_at(self.tats.get(&ask.team).copied().unwrap_or(0), limit_of(&ask.team), now));
        LedgerReply {
            rate: self.rate,
            owed: rest(self.tat()),
            pause: rest(self.paused),
            open: rest(self.open),
            opening: (self.open > 0).then(|| u64::try_from(self.opened).unwrap()),
            granted: self.granted,
            elsewhere: queues,
            wait: rest(now + wait),
            now: u64::try_from(now).unwrap(),
            teams: request.teams.iter().map(of_team).collect(),
            tokens,
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let passed = prop_oneof![
        20 => 0i64..30_000,
        10 => 0i64..400_000,
        2 => 0i64..20_000_000,
        1 => -2_000_000i64..0,
    ];
    let rate = prop_oneof![
        30 => Just(TokenRate { period: 50_000, burst: 5 }),
        2 => Just(TokenRate { period: 70_001, burst: 2 }),
        1 => Just(TokenRate::default()),
    ];
    let rarely = |most: u64| prop_oneof![15 => Just(0), 1 => 0..most].prop_map(Duration::from_micros);
    let calls = || (0u32..4, prop_oneof![3 => Just(0u32), 1 => 0u32..3]);
    (
        passed,
        0usize..3,
        rate,
        (rarely(1_500_000), rarely(5_000_000)),
        (any::<bool>(), prop::bool::weighted(0.1), prop::option::weighted(0.3, 0u8..4)),
        prop_oneof![9 => Just(None), 1 => (1i64..3_000_000).prop_map(Some)],
        0u32..5,
        prop_oneof![9 => Just(0), 1 => 1u64..9],
        (proptest::option::of(0usize..4), 0u32..3),
        [calls(), calls(), calls()],
    )
        .prop_map(
            |(passed, replica, rate, (pause, open), circuit, late, most, spent_standalone, (refund, queue), calls)| {
                Step {
                    passed,
                    replica,
                    rate,
                    pause,
                    open,
                    takes_part: circuit.0,
                    ends: circuit.1,
                    failed_probe: circuit.2,
                    late,
                    most,
                    spent_standalone,
                    refund,
                    queue,
                    calls,
                }
            },
        )
}

impl Step {
    /// What it tells of its circuit, if it knows this opening.
    fn circuit(&self, known: Option<u64>) -> LedgerRequest {
        let is_open = self.takes_part || !self.open.is_zero();
        let opening = if is_open { known.or(Some(0)) } else { None };
        let failed_probes = self.failed_probe.iter().map(|query| format!("query{query}")).collect();
        LedgerRequest {
            open: self.open,
            opening,
            ended: known.filter(|_| self.ends),
            failed_probes,
            ..LedgerRequest::default()
        }
    }
}

fn empty_request() -> LedgerRequest {
    LedgerRequest { longest_pause: 2 * S, longest_open: 9 * S, ..LedgerRequest::default() }
}

fn asks(calls: [(u32, u32); 3]) -> Vec<TeamDemand> {
    let team = |number: usize, background: bool, calls: u32| {
        // The third has a limit of its own.
        let limit = if number == 2 { TokenRate { period: 300_000, burst: 2 } } else { TokenRate::default() };
        TeamDemand { team: format!("team{number}"), background, weight: number as u32 + 1, calls, limit }
    };
    let both = |(number, (clients, refreshes))| [team(number, false, clients), team(number, true, refreshes)];
    calls.into_iter().enumerate().flat_map(both).filter(|ask| ask.calls > 0).collect()
}

#[test]
fn the_script_does_as_its_model() {
    let Some(server) = TestServer::start() else { return };
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(60) });
    let steps = proptest::collection::vec(step(), 1..120);
    let result = runner.run(&steps, |steps| {
        server.flush();
        let (mut store, mut model) = (TimedScript::new(&server), Model::default());
        let (mut now, mut held, mut known) = (1_800_000_000_123_456_i64, vec![Vec::<Refund>::new(); 3], [None; 3]);
        for step in &steps {
            now += step.passed;
            let own = &held[step.replica];
            let refunds = step.refund.and_then(|place| own.iter().rev().nth(place).cloned()).into_iter().collect();
            let Step { rate, pause, most, spent_standalone, queue, .. } = *step;
            // The third is far away.
            let round_trip = if step.replica == 2 { 190 * MS } else { MS / 3 };
            let (longest_pause, longest_open) = (S, 3 * S);
            let latest = step.late.map(|late| u64::try_from(now - late).unwrap());
            let teams = asks(step.calls);
            let request = LedgerRequest {
                rate,
                pause,
                most,
                latest,
                round_trip,
                spent_standalone,
                longest_pause,
                longest_open,
                queue,
                refunds,
                teams,
                ..step.circuit(known[step.replica])
            };
            let reply = store.ask(&step.replica.to_string(), &request, now);
            let expected = model.ask(step.replica, &request, now);
            prop_assert_eq!(&reply, &expected, "{:?} at {}", step, now);
            let refund = |token: &GrantedToken| Refund::of(&request.teams[token.team], token.at);
            held[step.replica].extend(reply.tokens.iter().map(refund));
            known[step.replica] = reply.opening.or(known[step.replica]);
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

/// Whatever replicas do: tokens that were not given back stay within the bound, and none is for a time in a pause.
#[test]
fn what_is_used_stays_within_the_bound() {
    let Some(server) = TestServer::start() else { return };
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(60) });
    let steps = proptest::collection::vec(step(), 1..120);
    let rate = TokenRate { period: 50_000, burst: 5 };
    let result = runner.run(&steps, |steps| {
        server.flush();
        let mut store = TimedScript::new(&server);
        let (mut now, mut held, mut used) = (1_800_000_000_000_000_i64, vec![Vec::<Refund>::new(); 3], Vec::new());
        let mut paused = 0;
        for step in &steps {
            now += step.passed.max(0);
            let own = &mut held[step.replica];
            // Each is given back once at most; those that are too old count as used.
            let refund = step.refund.filter(|place| *place < own.len()).map(|place| own.remove(own.len() - 1 - place));
            let refunds = refund.into_iter().collect();
            let Step { pause, most, .. } = *step;
            // The third is far away.
            let round_trip = if step.replica == 2 { 190 * MS } else { MS / 3 };
            let LedgerRequest { open, opening, .. } = step.circuit(None);
            let teams = asks(step.calls);
            let request =
                LedgerRequest { rate, pause, open, opening, most, round_trip, refunds, teams, ..empty_request() };
            paused = paused.max(now + signed(micros(pause)));
            let reply = store.ask(&step.replica.to_string(), &request, now);
            for token in reply.tokens {
                prop_assert!(signed(token.at) >= paused);
                held[step.replica].push(Refund::of(&request.teams[token.team], token.at));
            }
        }
        used.extend(held.into_iter().flatten().map(|token| token.at));
        used.sort_unstable();
        for (i, first) in used.iter().enumerate() {
            for (j, last) in used.iter().enumerate().skip(i) {
                let bound = rate.burst * rate.period + (last - first);
                prop_assert!((j - i + 1) as u64 * rate.period <= bound, "{} in {} us", j - i + 1, last - first);
            }
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}
