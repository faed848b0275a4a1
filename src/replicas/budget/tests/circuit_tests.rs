//! The circuit of several replicas, under paused time.

use super::*;
use crate::budget::CircuitState;

const NEAR: Duration = Duration::from_millis(2);

/// An upstream that answers like this after this time, and what was sent to it.
#[derive(Clone)]
struct Upstream {
    outcome: AttemptOutcome,
    takes: Duration,
    sent: Sent,
}

impl Upstream {
    fn new(outcome: AttemptOutcome, takes: Duration) -> Self {
        Self { outcome, takes, sent: Sent::default() }
    }

    /// Clients of each replica that ask again and again, also where they are refused.
    fn clients(&self, budgets: &[AccountBudget]) -> tokio::task::JoinSet<()> {
        let mut tasks = tokio::task::JoinSet::new();
        for budget in budgets.iter().flat_map(|budget| [budget; 4]) {
            let (budget, upstream) = (budget.clone(), self.clone());
            tasks.spawn(async move {
                loop {
                    let (call, _waiter) = call_of(&team("a", 1), 60 * S);
                    let Ok(mut permit) = budget.acquire(&call).await else {
                        tokio::time::sleep(10 * MS).await;
                        continue;
                    };
                    permit.spend();
                    lock(&upstream.sent.0).push(("a".into(), Instant::now()));
                    tokio::time::sleep(upstream.takes).await;
                    permit.end(upstream.outcome);
                }
            });
        }
        tasks
    }
}

fn answered() -> AttemptOutcome {
    AttemptOutcome::Answered(RateLimitHeaders::default())
}

fn circuits(budgets: &[AccountBudget]) -> Vec<CircuitState> {
    budgets.iter().map(|budget| budget.status().circuit).collect()
}

/// Three replicas whose circuit has been open, and is half open now, because of what the upstream answered to the
/// first.
async fn half_open() -> Option<(SimulatedStore, [Link; 3], [AccountBudget; 3])> {
    let store = SimulatedStore::start(3)?;
    let links = [(); 3].map(|()| store.link(NEAR));
    let budgets = links.each_ref().map(|link| link.budget(limits(1000, 100)));
    tokio::time::sleep(100 * MS).await;
    for _ in 0..10 {
        attempt(&budgets[0], &team("a", 1), AttemptOutcome::Failed).await;
    }
    tokio::time::sleep(2 * S).await;
    assert_eq!(circuits(&budgets), [CircuitState::Open; 3]);
    tokio::time::sleep(4 * S).await;
    assert_eq!(circuits(&budgets), [CircuitState::HalfOpen; 3]);
    Some((store, links, budgets))
}

#[tokio::test(start_paused = true)]
async fn one_probe_closes_the_circuit_of_all() {
    let Some((_store, _links, budgets)) = half_open().await else { return };
    let upstream = Upstream::new(answered(), 300 * MS);
    let begun = Instant::now();
    let load = upstream.clients(&budgets);
    tokio::time::sleep(2 * S).await;
    drop(load);
    let times = upstream.sent.times();
    assert!(times[0] < begun + 100 * MS, "at once");
    assert!(times[1] >= times[0] + 300 * MS, "not before the first has ended: {:?}", times[1] - times[0]);
    assert_eq!(circuits(&budgets), [CircuitState::Closed; 3]);
}

#[tokio::test(start_paused = true)]
async fn probes_of_several_queries_that_fail_open_it_again_wherever_they_were_sent() {
    let Some((_store, _links, budgets)) = half_open().await else { return };
    let upstream = Upstream::new(AttemptOutcome::Failed, 20 * MS);
    let load = upstream.clients(&budgets);
    // Twice: the circuit is open for 5 s in between.
    for round in 1..=2 {
        tokio::time::sleep(4 * S).await;
        assert_eq!(upstream.sent.times().len(), 3 * round);
        assert_eq!(circuits(&budgets), [CircuitState::Open; 3]);
        tokio::time::sleep(1500 * MS).await;
    }
    drop(load);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_succeeds_after_the_circuit_has_opened_again_closes_it_for_all() {
    let Some((_store, _links, budgets)) = half_open().await else { return };
    let (call, _waiter) = call_of(&team("a", 1), 60 * S);
    let mut slow = budgets[0].acquire(&call).await.unwrap();
    slow.spend();
    tokio::time::sleep(1100 * MS).await;
    let upstream = Upstream::new(AttemptOutcome::Failed, 20 * MS);
    let load = upstream.clients(&budgets[1..]);
    tokio::time::sleep(1200 * MS).await;
    drop(load);
    assert_eq!(circuits(&budgets), [CircuitState::Open; 3]);
    slow.end(answered());
    tokio::time::sleep(1100 * MS).await;
    assert_eq!(circuits(&budgets), [CircuitState::Closed; 3]);
    let begun = Instant::now();
    for budget in &budgets {
        attempt(budget, &team("a", 1), answered()).await;
    }
    assert!(begun.elapsed() < S, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_probe_without_an_end_keeps_the_others_back_for_a_second() {
    let Some((store, _links, budgets)) = half_open().await else { return };
    let upstream = Upstream::new(answered(), 3600 * S);
    let load = upstream.clients(&budgets);
    tokio::time::sleep(2500 * MS).await;
    assert_eq!(upstream.sent.times().len(), 3);
    // One that starts now takes part, and so do all after the store has lost its data.
    let newer = [store.link(NEAR).budget(limits(1000, 100))];
    let more = upstream.clients(&newer);
    tokio::time::sleep(S).await;
    assert_eq!(circuits(&newer), [CircuitState::HalfOpen]);
    store.0.server.flush();
    tokio::time::sleep(2 * S).await;
    drop((load, more));
    let count = upstream.sent.times().len();
    assert!((5..=7).contains(&count), "{count}");
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_not_sent_lets_another_replica_try() {
    let Some((_store, _links, budgets)) = half_open().await else { return };
    let (call, _waiter) = call_of(&team("a", 1), 60 * S);
    let unused = budgets[0].acquire(&call).await.unwrap();
    let begun = Instant::now();
    drop(unused);
    attempt(&budgets[1], &team("a", 1), answered()).await;
    assert!(begun.elapsed() < 100 * MS, "{:?}", begun.elapsed());
    tokio::time::sleep(1100 * MS).await;
    assert_eq!(circuits(&budgets), [CircuitState::Closed; 3]);
}

#[tokio::test(start_paused = true)]
async fn without_the_store_each_replica_probes_by_itself() {
    let Some((_store, links, budgets)) = half_open().await else { return };
    links.iter().for_each(|link| link.reach(false));
    let upstream = Upstream::new(answered(), 300 * MS);
    let load = upstream.clients(&budgets);
    tokio::time::sleep(250 * MS).await;
    assert_eq!(upstream.sent.times().len(), 3);
    tokio::time::sleep(300 * MS).await;
    assert_eq!(circuits(&budgets), [CircuitState::Closed; 3]);
    links.iter().for_each(|link| link.reach(true));
    tokio::time::sleep(3 * S).await;
    assert_eq!(circuits(&budgets), [CircuitState::Closed; 3], "what the store remembers is over");
    drop(load);
}
