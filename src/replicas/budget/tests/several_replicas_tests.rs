//! Several replicas and the script, under paused time.

use super::*;
use crate::budget::CircuitState;
use crate::replicas::budget::ledger::ALIVE as LIVES;

/// A token may be used this long after its time: the resolution of timers, twice.
const LATE: Duration = Duration::from_millis(2);
/// A store that is near, and one that answers just in time.
const NEAR: Duration = Duration::from_millis(2);
const SLOW: Duration = Duration::from_millis(190);

/// Replicas that are all busy with a team, for `time`; what they sent.
async fn sent_by(replicas: u32, round_trip: Duration, limits: Limits, time: Duration) -> Option<Sent> {
    let store = SimulatedStore::start(replicas)?;
    let sent = Sent::default();
    let load = |_| sent.load(&store.link(round_trip).budget(limits), &team("a", 1), 40);
    let loads: Vec<_> = (0..replicas).map(load).collect();
    tokio::time::sleep(time).await;
    drop(loads);
    Some(sent)
}

#[tokio::test(start_paused = true)]
async fn replicas_share_one_rate_and_use_it_however_slow_the_store_is() {
    for (replicas, round_trip) in [(3, NEAR), (1, SLOW), (3, SLOW)] {
        for (rate, burst) in [(5, 1), (20, 5), (100, 10)] {
            let Some(sent) = sent_by(replicas, round_trip, limits(rate, burst), 10 * S).await else { return };
            sent.assert_bound(f64::from(rate), f64::from(burst), LATE);
            let (count, all) = (sent.times().len(), 10 * rate);
            assert!(count as f64 >= 0.9 * f64::from(all), "{count} of {all} by {replicas}, {round_trip:?} away");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn weights_hold_however_the_demand_is_spread() {
    let placements: [&[&[(&str, u32)]]; 3] = [
        &[&[("a", 3)], &[("b", 1)], &[("b", 1)]],
        &[&[("a", 3), ("b", 1)], &[("b", 1)], &[("a", 3), ("b", 1)]],
        &[&[("a", 3)], &[("a", 3), ("b", 1)], &[("b", 1)]],
    ];
    // Replicas take turns at the lower rate.
    let cases = |placed| [(placed, NEAR, 100), (placed, SLOW, 100), (placed, NEAR, 20)];
    for (placed, round_trip, rate) in placements.into_iter().flat_map(cases) {
        let Some(store) = SimulatedStore::start(3) else { return };
        let (sent, mut loads) = (Sent::default(), Vec::new());
        for teams in placed {
            let budget = store.link(round_trip).budget(limits(rate, 5));
            loads.extend(teams.iter().map(|(name, weight)| sent.load(&budget, &team(name, *weight), 40)));
        }
        let time = S * 1000 / rate;
        tokio::time::sleep(time).await;
        drop(loads);
        sent.assert_bound(f64::from(rate), 5.0, LATE);
        let (a, b) = (sent.of("a"), sent.of("b"));
        assert!(a + b >= 900, "{a} and {b} of 1000 with {placed:?}, {round_trip:?} away, {rate}/s");
        assert!(
            (2.55..=3.45).contains(&(a as f64 / b as f64)),
            "{a} and {b} with {placed:?}, {round_trip:?} away, {rate}/s"
        );
    }
}

/// Turns are each team's own: what another team got there is no reason to leave a team without tokens at a replica.
#[tokio::test(start_paused = true)]
async fn a_team_gets_its_part_where_another_team_is_busy() {
    let Some(store) = SimulatedStore::start(3) else { return };
    let [one, two, three] = [(); 3].map(|()| store.link(NEAR).budget(limits(20, 5)));
    let (heavy, light) = (team("a", 3), team("b", 1));
    let (sent, beside, apart) = (Sent::default(), Sent::default(), Sent::default());
    let _loads = [sent.load(&one, &heavy, 10), sent.load(&two, &heavy, 2)];
    let _lights = [beside.load(&two, &light, 10), apart.load(&three, &light, 20)];
    tokio::time::sleep(40 * S).await;
    let counts = [sent.of("a"), beside.of("b"), apart.of("b")];
    assert!(counts.iter().zip([510, 85, 85]).all(|(count, least)| *count >= least), "{counts:?} of 800");
}

/// Clients that ask one thing after the other are no reason to leave a queue at another replica without tokens.
#[tokio::test(start_paused = true)]
async fn a_replica_with_a_queue_gets_its_part_beside_those_that_wait_now_and_then() {
    for busy in [1, 2] {
        let Some(store) = SimulatedStore::start(1 + busy) else { return };
        let (queue, others) = (Sent::default(), Sent::default());
        let _load = queue.load(&store.link(NEAR).budget(limits(5, 1)), &team("a", 1), 40);
        let mut clients = tokio::task::JoinSet::new();
        for number in 0..busy {
            let (budget, sent) = (store.link(NEAR).budget(limits(5, 1)), others.clone());
            clients.spawn(async move {
                loop {
                    let at = send(&budget, &team("a", 1)).await;
                    lock(&sent.0).push(("a".into(), at));
                    tokio::time::sleep(250 * MS + 35 * MS * number).await;
                }
            });
        }
        tokio::time::sleep(20 * S).await;
        let (queued, all) = (queue.of("a"), queue.of("a") + others.of("a"));
        assert!(all >= 90, "{all} of 100");
        assert!(queued >= all / (busy as usize + 1) * 9 / 10, "{queued} of {all} beside {busy}");
    }
}

/// Each client asks once, and once more when it was told to come back.
#[tokio::test(start_paused = true)]
async fn clients_that_come_back_when_they_were_told_are_served() {
    /// They come one after the other, or nearly all at once.
    const SLOWLY: Duration = Duration::from_secs(6);
    const AT_ONCE: Duration = Duration::from_millis(100);
    let slowly = [(1, 300), (2, 200), (3, 120), (3, 300)].map(|(replicas, clients)| (replicas, clients, SLOWLY, 2 * S));
    let bursts = [(1, 200), (2, 120), (3, 90), (3, 200), (3, 400)];
    let at_once = bursts.map(|(replicas, clients)| (replicas, clients, AT_ONCE, 3 * S));
    let at_the_same_time = bursts.map(|(replicas, clients)| (replicas, clients, Duration::ZERO, 3 * S));
    for (replicas, clients, spread, patience) in slowly.into_iter().chain(at_once).chain(at_the_same_time) {
        let Some(store) = SimulatedStore::start(replicas) else { return };
        // Fewer slots than clients, so that only some of those that wait could be sent.
        let limits = Limits { concurrency: 10, ..limits(10, 5) };
        let budgets: Vec<_> = (0..replicas).map(|_| store.link(NEAR).budget(limits)).collect();
        tokio::time::sleep(2 * S).await;
        let asks = async |budget: &AccountBudget, call: &UpstreamCall| {
            let mut permit = budget.acquire(call).await?;
            permit.spend();
            permit.end(AttemptOutcome::Answered(RateLimitHeaders::default()));
            Ok::<_, GatewayError>(())
        };
        let client = async |number: u32| {
            tokio::time::sleep(spread * number / clients).await;
            let budget = &budgets[(number % replicas) as usize];
            let (call, _waiter) = call_of(&team("a", 1), patience);
            let refused = asks(budget, &call).await.err()?;
            tokio::time::sleep(refused.retry_after().unwrap()).await;
            let again = UpstreamCall { deadline: Instant::now() + patience, ..call };
            Some(asks(budget, &again).await.is_ok())
        };
        let ends = futures_util::future::join_all((0..clients).map(client)).await;
        let served: Vec<bool> = ends.into_iter().flatten().collect();
        let count = served.iter().filter(|served| **served).count();
        let refused = served.len();
        assert!(refused > 20, "{refused} of {clients} were refused by {replicas}");
        assert!(count * 10 >= refused * 9, "{count} of {refused} by {replicas}, {clients} clients in {spread:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_flush_gives_at_most_one_burst_more() {
    let Some(store) = SimulatedStore::start(2) else { return };
    let sent = Sent::default();
    let load = |_| sent.load(&store.link(NEAR).budget(limits(50, 20)), &team("a", 1), 8);
    let loads: Vec<_> = (0..2).map(load).collect();
    tokio::time::sleep(S).await;
    store.0.server.flush();
    tokio::time::sleep(S).await;
    drop(loads);
    sent.assert_bound(50.0, 40.0, LATE);
}

/// What was sent to a store that froze is run when it thaws, though nobody waits for it any more.
#[tokio::test(start_paused = true)]
async fn a_store_that_thaws_grants_nothing_to_those_who_gave_up() {
    let Some(store) = SimulatedStore::start(2) else { return };
    let (sent, links) = (Sent::default(), [(); 2].map(|()| store.link(NEAR)));
    let loads: Vec<_> = links.iter().map(|link| sent.load(&link.budget(limits(10, 10)), &team("a", 1), 5)).collect();
    tokio::time::sleep(2 * S).await;
    store.freeze(true);
    tokio::time::sleep(3 * S).await;
    let granted = || store.run::<u64>("HGET budget granted");
    let before = granted();
    drop(loads);
    links.iter().for_each(|link| link.reach(false));
    store.freeze(false);
    tokio::time::sleep(S).await;
    assert_eq!(granted(), before);
    // Until when it counts, and the queue, which keeps nobody from tokens.
    let waiting = store.run::<Vec<String>>("HVALS waiting");
    assert!(waiting.iter().all(|text| text.split(' ').count() == 2), "{waiting:?}");
}

/// Another server has taken over. At most a second is lost, because the time is noted once a second.
#[tokio::test(start_paused = true)]
async fn a_store_whose_clock_jumps_goes_on() {
    for jump in [3_600_000_000, -3_600_000_000] {
        let Some(store) = SimulatedStore::start(2) else { return };
        let sent = Sent::default();
        let budgets = [(); 2].map(|()| store.link(NEAR).budget(limits(10, 10)));
        let loads = budgets.each_ref().map(|budget| sent.load(budget, &team("a", 1), 5));
        tokio::time::sleep(3 * S).await;
        store.0.ahead.store(jump, SeqCst);
        let before = sent.times().len();
        for _ in 0..50 {
            tokio::time::sleep(100 * MS).await;
            for budget in &budgets {
                assert_eq!(budget.status().circuit, CircuitState::Closed, "after {jump} us");
            }
        }
        drop(loads);
        assert!(sent.times().len() - before >= 39, "{} of 50", sent.times().len() - before);
        sent.assert_bound(10.0, 20.0, LATE);
    }
}

/// The replicas that were cut off spent their parts, and meanwhile the store's bucket has filled.
#[tokio::test(start_paused = true)]
async fn a_store_that_returns_with_its_data_gives_no_burst_more() {
    for cut_off in [2, 1] {
        let Some(store) = SimulatedStore::start(2) else { return };
        let (sent, links) = (Sent::default(), [(); 2].map(|()| store.link(NEAR)));
        let budgets = links.clone().map(|link| link.budget(limits(10, 10)));
        send(&budgets[0], &team("a", 1)).await;
        links[..cut_off].iter().for_each(|link| link.reach(false));
        tokio::time::sleep(60 * S).await;
        let loads = budgets.each_ref().map(|budget| sent.load(budget, &team("a", 1), 8));
        tokio::time::sleep(100 * MS).await;
        links.iter().for_each(|link| link.reach(true));
        tokio::time::sleep(3 * S).await;
        drop(loads);
        let (all, part) = (10.0, 10.0 * cut_off as f64 / 2.0);
        // Whoever shares has the whole bucket, and whoever is alone has a part.
        let burst = if cut_off == 2 { all } else { all + part };
        sent.assert_bound(all, burst, 100 * MS + LATE);
        assert!(sent.times().len() >= 36, "{}", sent.times().len());
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_and_a_lower_rate_hold_for_all() {
    let Some(store) = SimulatedStore::start(2) else { return };
    let (one, two) = (store.link(NEAR).budget(limits(1000, 100)), store.link(NEAR).budget(limits(20, 1)));
    let sent = Sent::default();
    tokio::time::sleep(100 * MS).await;
    let load = sent.load(&one, &team("a", 1), 4);
    tokio::time::sleep(S).await;
    let count = sent.times().len();
    assert!((18..=21).contains(&count), "the lower rate: {count}");
    let limited = AttemptOutcome::RateLimited(Some(2 * S), RateLimitHeaders::default());
    attempt(&two, &team("a", 1), limited).await;
    tokio::time::sleep(100 * MS).await;
    let paused = sent.times().len();
    tokio::time::sleep(1800 * MS).await;
    assert_eq!(sent.times().len(), paused);
    tokio::time::sleep(2 * S).await;
    assert!(sent.times().len() > paused, "it ends for all");
    drop(load);
}

#[tokio::test(start_paused = true)]
async fn a_teams_own_limit_is_common() {
    let Some(store) = SimulatedStore::start(2) else { return };
    let [one, two] = [(); 2].map(|()| store.link(NEAR).budget(limits(1000, 100)));
    let limited = Team { upstream: Rate::new(2, 60 * S), ..team("a", 1) };
    send(&one, &limited).await;
    send(&one, &limited).await;
    let (call, _waiter) = call_of(&limited, 200 * MS);
    assert!(two.acquire(&call).await.is_err());
    // It is known now, so it is refused at once and with the right reason.
    let (call, _waiter) = call_of(&limited, 60 * S);
    let refused = two.acquire(&call).await.unwrap_err();
    assert_eq!(refused.reason(), crate::core::error::Reason::TeamRateLimit);
    assert!(refused.retry_after().unwrap() > 25 * S, "{refused:?}");
}

/// Each client asks once, and once more when it was told to come back. The clients of each team ask all replicas, one after
/// the other within a time, or all at once.
#[tokio::test(start_paused = true)]
async fn clients_that_a_teams_limit_refused_are_served_when_they_come_back() {
    for (replicas, teams, spread, patience) in [(1, 1, 0, 2), (3, 1, 6, 2), (3, 2, 6, 2), (3, 1, 0, 90), (3, 2, 0, 90)]
    {
        let Some(store) = SimulatedStore::start(replicas) else { return };
        let budgets: Vec<_> = (0..replicas).map(|_| store.link(NEAR).budget(limits(1000, 100))).collect();
        let teams = &["a", "b"].map(|name| Team { upstream: Rate::new(5, S), ..team(name, 1) })[..teams];
        tokio::time::sleep(2 * S).await;
        let sent = Sent::default();
        let asks = async |budget: &AccountBudget, call: &UpstreamCall| {
            let mut permit = budget.acquire(call).await?;
            permit.spend();
            lock(&sent.0).push((Arc::clone(&call.team.name), Instant::now()));
            permit.end(AttemptOutcome::Answered(RateLimitHeaders::default()));
            Ok::<_, GatewayError>(())
        };
        let client = async |number: u32| {
            tokio::time::sleep(S * spread * number / 200).await;
            let budget = &budgets[(number % replicas) as usize];
            let (call, _waiter) = call_of(&teams[number as usize % teams.len()], patience * S);
            let refused = asks(budget, &call).await.err()?;
            tokio::time::sleep(refused.retry_after().unwrap()).await;
            let again = UpstreamCall { deadline: Instant::now() + patience * S, ..call };
            Some(asks(budget, &again).await.is_ok())
        };
        let ends = futures_util::future::join_all((0..200).map(client)).await;
        let served: Vec<bool> = ends.into_iter().flatten().collect();
        let count = served.iter().filter(|served| **served).count();
        let name = format!("{replicas} replicas, {} teams, {spread} s", teams.len());
        assert!(served.len() >= 100, "{} were refused by {name}", served.len());
        assert!(count * 10 >= served.len() * 9, "{count} of {} by {name}", served.len());
        sent.assert_bound(5.0 * teams.len() as f64, 5.0 * teams.len() as f64, LATE);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_used_returns_to_the_teams_own_limit() {
    let Some(store) = SimulatedStore::start(2) else { return };
    let [one, two] = [(); 2].map(|()| store.link(NEAR).budget(limits(1000, 100)));
    let limited = Team { upstream: Rate::new(2, 60 * S), ..team("a", 1) };
    for _ in 0..2 {
        let (call, _waiter) = call_of(&limited, 60 * S);
        drop(one.acquire(&call).await.unwrap());
    }
    tokio::time::sleep(100 * MS).await;
    let begun = Instant::now();
    for _ in 0..2 {
        send(&two, &limited).await;
    }
    assert!(begun.elapsed() < S, "as if nothing had been taken");
    let (call, _waiter) = call_of(&limited, 200 * MS);
    assert!(one.acquire(&call).await.is_err(), "and no more than that");
}

/// One that is not configured any more still serves calls that wait, and then asks no more.
#[tokio::test(start_paused = true)]
async fn a_replica_without_the_account_limits_the_others_no_longer() {
    let Some(store) = SimulatedStore::start(2) else { return };
    let (slow, fast) = (store.link(NEAR).budget(limits(1, 1)), store.link(NEAR).budget(limits(50, 1)));
    tokio::time::sleep(S).await;
    for budget in [&slow, &fast] {
        send(budget, &team("a", 1)).await;
    }
    let (before, a) = (Instant::now(), team("a", 1));
    let waits = futures_util::future::join_all((0..5).map(|_| send(&slow, &a)));
    let retire = async {
        tokio::time::sleep(100 * MS).await;
        slow.retire();
    };
    let (sent, ()) = tokio::join!(waits, retire);
    assert!(sent.iter().max() >= Some(&(before + 4 * S)), "all were sent, at its own rate");
    tokio::time::sleep(LIVES + S).await;
    let limits_of: i64 = store.run("HLEN limits");
    assert_eq!(limits_of, 1);
    let sent = Sent::default();
    let load = sent.load(&fast, &team("a", 1), 5);
    tokio::time::sleep(2 * S).await;
    drop(load);
    assert!(sent.times().len() >= 90, "{} at 50/s in 2 s", sent.times().len());
    // It comes back when it is configured again.
    slow.set_limits(limits(2, 1));
    tokio::time::sleep(S).await;
    let limits_of: i64 = store.run("HLEN limits");
    assert_eq!(limits_of, 2);
}

#[tokio::test(start_paused = true)]
async fn an_account_that_is_not_configured_is_not_asked_for_when_the_store_returns() {
    let Some(store) = SimulatedStore::start(1) else { return };
    let link = store.link(NEAR);
    let budget = link.budget(limits(10, 1));
    send(&budget, &team("a", 1)).await;
    budget.retire();
    tokio::time::sleep(2 * S).await;
    let _: i64 = store.run("DEL limits");
    for is_up in [false, true] {
        link.reach(is_up);
        tokio::time::sleep(3 * S).await;
    }
    let is_there = || -> bool { store.run("EXISTS limits") };
    assert!(!is_there());
    // A call of the old configuration is served all the same.
    send(&budget, &team("a", 1)).await;
    budget.set_limits(limits(10, 1));
    tokio::time::sleep(S).await;
    assert!(is_there());
}
