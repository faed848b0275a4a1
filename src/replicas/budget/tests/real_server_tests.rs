//! Several replicas and a real server, over real connections.

use super::*;
use crate::replicas::test_server::until;
use crate::replicas::{SharedStore, StoreUse};

fn budget(store: &SharedStore, limits: Limits) -> AccountBudget {
    let clock = Clock::new();
    let quota = SharedQuota::new(store.clone(), Team::example("a").account, &limits, clock);
    AccountBudget::with_quota("main".into(), limits, Box::new(quota), clock)
}

/// The bucket does not refill within this test, so the number is exact however slow the machine is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_take_from_one_bucket() {
    let Some(server) = TestServer::start() else { return };
    let (sent, mut loads, mut stores) = (Sent::default(), Vec::new(), Vec::new());
    let limits = Limits { rate: Rate::new(1, 3600 * S), ..limits(1, 12) };
    for _ in 0..3 {
        let store = server.replica().await;
        // A client who would wait for an hour is refused, and asks again.
        loads.push(sent.load(&budget(&store, limits), &team("a", 1), 1));
        stores.push(store);
    }
    until("all tokens are used", || sent.of("a") >= 12).await;
    tokio::time::sleep(100 * MS).await;
    assert_eq!(sent.of("a"), 12);
    drop(loads);
}

/// A probe that takes more than a second lets others try, so that the test holds however slow the machine is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_send_one_probe() {
    let Some(server) = TestServer::start() else { return };
    let circuit = CircuitPolicy { open: 200 * MS, ..limits(1, 1).circuit };
    let (mut stores, mut budgets) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let store = server.replica().await;
        budgets.push(budget(&store, Limits { circuit, ..limits(1000, 100) }));
        stores.push(store);
    }
    for _ in 0..10 {
        attempt(&budgets[0], &team("a", 1), AttemptOutcome::Failed).await;
    }
    let is_broken = |budget: &AccountBudget| budget.status().broken_for.is_some();
    until("all know of it", || budgets.iter().all(is_broken)).await;
    let (begun, granted) = (Instant::now(), Arc::new(Mutex::new(Vec::new())));
    for budget in &budgets {
        let (budget, granted) = (budget.clone(), Arc::clone(&granted));
        tokio::spawn(async move {
            loop {
                let (call, _waiter) = call_of(&team("a", 1), 60 * S);
                if let Ok(mut permit) = budget.acquire(&call).await {
                    permit.spend();
                    lock(&granted).push(permit);
                    return;
                }
                tokio::time::sleep(5 * MS).await;
            }
        });
    }
    until("a probe is sent", || !lock(&granted).is_empty()).await;
    tokio::time::sleep(200 * MS).await;
    let probes: Vec<_> = lock(&granted).drain(..).collect();
    let most = 1 + begun.elapsed().as_secs();
    assert!(probes.len() as u64 <= most, "{} instead of {most}", probes.len());
    for probe in probes {
        probe.end(AttemptOutcome::Answered(RateLimitHeaders::default()));
    }
    until("it is closed for all", || !budgets.iter().any(is_broken)).await;
}

#[tokio::test]
async fn every_key_expires_and_shows_no_team() {
    let Some(server) = TestServer::start() else { return };
    let store = server.replica().await;
    let budget = budget(&store, limits(1, 1));
    send(&budget, &team("finance", 1)).await;
    let waiting = Sent::default().load(&budget, &team("finance", 1), 3);
    // All at once: some expire within a second.
    let look = "
        local found = {}
        for _, key in ipairs(redis.call('KEYS', '*')) do
          local is_hash = redis.call('TYPE', key).ok == 'hash'
          local content = is_hash and redis.call('HGETALL', key) or {}
          found[#found + 1] = { key, redis.call('PTTL', key), table.concat(content, ' ') }
        end
        return found";
    let deadline = Instant::now() + 10 * S;
    let keys = loop {
        let keys: Vec<(String, i64, String)> = store.run("test", redis::cmd("EVAL").arg(look).arg(0)).await.unwrap();
        // Who waits is there only while somebody does.
        if keys.len() >= 6 {
            break keys;
        }
        assert!(Instant::now() < deadline, "{keys:?}");
    };
    for (key, ttl, content) in keys {
        let longest = if key.ends_with("{changes}:clock") { 31 * 86_400_000 } else { 200_000 };
        assert!((1..=longest).contains(&ttl), "{key}: {ttl}");
        assert!(!format!("{key}{content}").contains("finance"), "{key}: {content}");
    }
    drop(waiting);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "counts what is sent in some seconds, which a busy machine makes fewer"]
async fn in_real_time_three_replicas_share_one_rate_and_use_it() {
    let Some(server) = TestServer::start() else { return };
    for (rate, burst) in [(20, 5), (50, 10)] {
        server.flush();
        let (sent, mut loads, mut stores) = (Sent::default(), Vec::new(), Vec::new());
        for _ in 0..3 {
            let store = server.replica().await;
            loads.push(sent.load(&budget(&store, limits(rate, burst)), &team("a", 1), 5));
            stores.push(store);
        }
        tokio::time::sleep(5 * S).await;
        drop(loads);
        // What a token is held for, and a busy machine.
        sent.assert_bound(f64::from(rate), f64::from(burst), 120 * MS);
        let count = sent.times().len() as f64;
        assert!(count >= 0.9 * 5.0 * f64::from(rate), "{count} of {rate}/s in 5 s");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_refuses_only_the_budget_leaves_the_replica_alone_until_it_takes_it() {
    let Some(server) = TestServer::start() else { return };
    let store = server.replica().await;
    let budget = budget(&store, limits(1000, 100));
    send(&budget, &team("a", 1)).await;
    let acl = async |keys: &[&str]| {
        let mut command = redis::cmd("ACL");
        command.arg(&["SETUSER", "default"]).arg(keys);
        store.run::<()>("test", &command).await.unwrap();
    };
    acl(&["resetkeys", "~*{changes}*"]).await;
    until("it is alone", || store.view().usage == StoreUse::None).await;
    assert!(store.view().cause.unwrap().ends_with("shared.prefix: NOPERM"));
    assert!(store.is_up());
    send(&budget, &team("a", 1)).await;
    acl(&["allkeys", "-hset"]).await;
    let cause = "the user may not run HSET: NOPERM";
    until("the right is named", || store.view().cause.as_deref() == Some(cause)).await;
    acl(&["+hset"]).await;
    until("it shares", || store.view().usage == StoreUse::All).await;
    acl(&["resetkeys", "~*{changes}*"]).await;
    until("it is alone", || store.view().usage == StoreUse::None).await;
    // An account that is no longer configured.
    drop(budget);
    until("nobody misses it", || store.view().usage == StoreUse::All).await;
}
