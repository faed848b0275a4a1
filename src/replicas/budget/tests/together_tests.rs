//! Several replicas and one real server.

use std::collections::HashMap;
use std::sync::Mutex;

use super::*;
use crate::replicas::SharedStore;
use crate::replicas::test_server::TestServer;

fn budget(store: &SharedStore, limits: Limits) -> AccountBudget {
    let clock = Clock::new();
    let quota = SharedQuota::new(store.clone(), Team::example("a").account, &limits, clock);
    AccountBudget::with_quota("main".into(), limits, Box::new(quota), clock)
}

/// The attempts that were sent, by their teams and times.
#[derive(Clone, Default)]
struct Sent(Arc<Mutex<Vec<Attempt>>>);

type Attempt = (Arc<str>, Instant);

impl Sent {
    fn of(&self, team: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|(name, _)| **name == *team).count()
    }

    fn times(&self) -> Vec<Instant> {
        let mut times: Vec<_> = self.0.lock().unwrap().iter().map(|(_, at)| *at).collect();
        times.sort();
        times
    }

    /// Clients of a team that ask again and again, until they are dropped.
    fn load(&self, budget: &AccountBudget, team: &Team, clients: usize) -> tokio::task::JoinSet<()> {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..clients {
            let (budget, team, sent) = (budget.clone(), team.clone(), self.clone());
            tasks.spawn(async move {
                loop {
                    let at = send(&budget, &team).await;
                    sent.0.lock().unwrap().push((Arc::clone(&team.name), at));
                }
            });
        }
        tasks
    }

    /// No window holds more than the bound. `late` is by how much a token may be used after its time.
    fn assert_bound(&self, per_second: f64, burst: f64, late: Duration) {
        let times = self.times();
        for (i, first) in times.iter().enumerate() {
            for (j, last) in times.iter().enumerate().skip(i) {
                let bound = burst + per_second * (*last - *first + late).as_secs_f64();
                assert!((j - i + 1) as f64 <= bound + 1e-6, "{} in {:?}", j - i + 1, *last - *first);
            }
        }
    }
}

/// A token may be used up to this long after its time: what it is held for, and a busy machine.
const LATE: Duration = Duration::from_millis(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_share_one_rate_and_use_it() {
    let Some(server) = TestServer::start() else { return };
    // With some burst, so that a machine that is busy for a moment can make up for it.
    for (rate, burst) in [(20, 5), (50, 10)] {
        server.flush();
        let sent = Sent::default();
        let mut loads = Vec::new();
        let mut stores = Vec::new();
        for _ in 0..3 {
            let store = server.replica().await;
            let budget = budget(&store, limits(rate, burst));
            loads.push(sent.load(&budget, &team("a", 1), 5));
            stores.push(store);
        }
        tokio::time::sleep(2 * S).await;
        drop(loads);
        let count = sent.times().len() as f64;
        sent.assert_bound(f64::from(rate), f64::from(burst), LATE);
        assert!(count >= 0.9 * 2.0 * f64::from(rate), "{count} of {rate}/s in 2 s");
    }
}

/// One wants all of it, so that the other side is not what limits it.
async fn shares(placed: &[&[(&str, u32)]]) -> HashMap<String, usize> {
    let Some(server) = TestServer::start() else { return HashMap::new() };
    let (sent, mut loads, mut stores) = (Sent::default(), Vec::new(), Vec::new());
    for teams in placed {
        let store = server.replica().await;
        let budget = budget(&store, limits(100, 5));
        for (name, weight) in *teams {
            loads.push(sent.load(&budget, &team(name, *weight), 8));
        }
        stores.push(store);
    }
    tokio::time::sleep(4 * S).await;
    drop(loads);
    assert!(sent.times().len() >= 360, "{} of 400", sent.times().len());
    sent.assert_bound(100.0, 5.0, LATE);
    ["a", "b"].map(|team| (team.to_owned(), sent.of(team))).into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weights_hold_however_the_demand_is_spread() {
    let placements: [&[&[(&str, u32)]]; 2] =
        [&[&[("a", 3)], &[("b", 1)], &[("b", 1)]], &[&[("a", 3), ("b", 1)], &[("b", 1)], &[("a", 3), ("b", 1)]]];
    for placed in placements {
        let shares = shares(placed).await;
        if shares.is_empty() {
            return;
        }
        let ratio = shares["a"] as f64 / shares["b"] as f64;
        assert!((2.55..=3.45).contains(&ratio), "{shares:?} with {placed:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_gives_at_most_one_burst_more() {
    let Some(server) = TestServer::start() else { return };
    let (sent, mut loads, mut stores) = (Sent::default(), Vec::new(), Vec::new());
    for _ in 0..2 {
        let store = server.replica().await;
        loads.push(sent.load(&budget(&store, limits(50, 20)), &team("a", 1), 8));
        stores.push(store);
    }
    tokio::time::sleep(S).await;
    server.flush();
    tokio::time::sleep(S).await;
    drop(loads);
    sent.assert_bound(50.0, 40.0, LATE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_and_a_lower_rate_hold_for_all() {
    let Some(server) = TestServer::start() else { return };
    let (one, two) = (server.replica().await, server.replica().await);
    let (one, two) = (budget(&one, limits(1000, 100)), budget(&two, limits(20, 1)));
    let sent = Sent::default();
    tokio::time::sleep(100 * MS).await;
    let load = sent.load(&one, &team("a", 1), 4);
    tokio::time::sleep(S).await;
    let count = sent.times().len();
    assert!((15..=23).contains(&count), "the lower rate: {count}");
    let limited = AttemptOutcome::RateLimited(Some(2 * S), RateLimitHeaders::default());
    attempt(&two, &team("a", 1), limited).await;
    tokio::time::sleep(100 * MS).await;
    let paused = sent.times().len();
    tokio::time::sleep(S).await;
    assert_eq!(sent.times().len(), paused);
    drop(load);
}

#[tokio::test]
async fn a_teams_own_limit_is_common() {
    let Some(server) = TestServer::start() else { return };
    let (one, two) = (server.replica().await, server.replica().await);
    let (one, two) = (budget(&one, limits(1000, 100)), budget(&two, limits(1000, 100)));
    let limited = Team { upstream: Rate::new(2, 60 * S), ..team("a", 1) };
    tokio::time::sleep(50 * MS).await;
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

#[tokio::test]
async fn every_key_expires_and_shows_no_team() {
    let Some(server) = TestServer::start() else { return };
    let store = server.replica().await;
    let budget = budget(&store, limits(1, 1));
    send(&budget, &team("finance", 1)).await;
    let waiting = Sent::default().load(&budget, &team("finance", 1), 3);
    tokio::time::sleep(100 * MS).await;
    let keys: Vec<String> = store.run("test", redis::cmd("KEYS").arg("*")).await.unwrap();
    assert!(keys.len() >= 4, "{keys:?}");
    for key in keys {
        let ttl: i64 = store.run("test", redis::cmd("PTTL").arg(&key)).await.unwrap();
        assert!((1..200_000).contains(&ttl), "{key}: {ttl}");
        if key.ends_with("replicas") {
            continue;
        }
        let content: HashMap<String, String> = store.run("test", redis::cmd("HGETALL").arg(&key)).await.unwrap();
        assert!(!format!("{key}{content:?}").contains("finance"), "{key}: {content:?}");
    }
    drop(waiting);
}
