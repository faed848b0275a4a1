//! One replica and a scripted store, under paused time.

use super::*;

type Reply = Box<dyn Fn(&LedgerRequest) -> LedgerReply + Send>;

/// Answers each ask as scripted; grants what is asked, at once, when nothing is.
#[derive(Clone)]
struct Scripted {
    is_up: watch::Sender<bool>,
    answers: Arc<Mutex<VecDeque<Reply>>>,
    asked: Arc<Mutex<Vec<LedgerRequest>>>,
    is_silent: Arc<std::sync::atomic::AtomicBool>,
    takes: Arc<Mutex<Duration>>,
    /// Each ask is refused for this reason.
    refusal: Arc<Mutex<Option<StoreError>>>,
    /// Why the replica is standalone.
    standalone: Arc<Mutex<Option<StoreError>>>,
}

impl Scripted {
    fn new(is_up: bool) -> Self {
        let is_up = watch::Sender::new(is_up);
        Self {
            is_up,
            answers: Arc::default(),
            asked: Arc::default(),
            is_silent: Arc::default(),
            takes: Arc::default(),
            refusal: Arc::default(),
            standalone: Arc::default(),
        }
    }

    fn silent(&self, is_silent: bool) {
        self.is_silent.store(is_silent, std::sync::atomic::Ordering::SeqCst);
    }

    fn takes(&self, time: Duration) {
        *self.takes.lock().unwrap() = time;
    }

    fn next(&self, reply: impl Fn(&LedgerRequest) -> LedgerReply + Send + 'static) {
        self.answers.lock().unwrap().push_back(Box::new(reply));
    }

    fn asked(&self) -> Vec<LedgerRequest> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn refunds(&self) -> Vec<u64> {
        self.asked().into_iter().flat_map(|request| request.refunds).map(|refund| refund.at).collect()
    }

    fn budget(&self, limits: Limits) -> AccountBudget {
        let clock = Clock::simulated();
        let quota = SharedQuota::over(self.clone(), &limits, clock);
        AccountBudget::with_quota("main".into(), limits, Box::new(quota), clock)
    }
}

fn grant(teams: &[TeamDemand], most: u32) -> LedgerReply {
    let tokens = teams.iter().enumerate().flat_map(|(team, ask)| (0..ask.calls).map(move |_| team));
    let tokens = tokens.take(most as usize).map(|team| GrantedToken { team, after: Duration::ZERO, at: 7 }).collect();
    LedgerReply {
        rate: TokenRate { period: 1, burst: 1 },
        wait: 5 * MS,
        teams: vec![Duration::ZERO; teams.len()],
        tokens,
        ..LedgerReply::default()
    }
}

impl Ledger for Scripted {
    async fn ask(&self, request: &LedgerRequest) -> Result<LedgerReply, StoreError> {
        self.asked.lock().unwrap().push(request.clone());
        if self.is_silent.load(std::sync::atomic::Ordering::SeqCst) {
            tokio::time::sleep(self.timeout()).await;
            return Err(StoreError::Timeout);
        }
        if let Some(refusal) = self.refusal.lock().unwrap().clone() {
            return Err(refusal);
        }
        let takes = *self.takes.lock().unwrap();
        tokio::time::sleep(takes).await;
        let scripted = self.answers.lock().unwrap().pop_front();
        Ok(scripted.map_or_else(|| grant(&request.teams, request.most), |reply| reply(request)))
    }

    fn watch_up(&self) -> watch::Receiver<bool> {
        self.is_up.subscribe()
    }

    fn set_standalone(&self, why: Option<&StoreError>) {
        *self.standalone.lock().unwrap() = why.cloned();
    }

    fn timeout(&self) -> Duration {
        100 * MS
    }

    fn replicas(&self) -> u32 {
        2
    }

    fn configured(&self) -> u32 {
        4
    }

    fn pseudonym(&self, _: &'static str, name: &[u8]) -> String {
        format!("<{}>", String::from_utf8_lossy(name))
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_comes_from_the_store_with_one_ask() {
    let store = Scripted::new(true);
    let (budget, start) = (store.budget(limits(5, 5)), Instant::now());
    advance(MS).await;
    tokio::task::yield_now().await;
    store.asked();
    assert!(send(&budget, &team("a", 3)).await - start < 10 * MS);
    let asked = store.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    let ask =
        TeamDemand { team: "<a>".to_owned(), background: false, weight: 3, calls: 1, limit: TokenRate::default() };
    assert_eq!((asked[0].teams.clone(), asked[0].most), (vec![ask], 1));
    assert_eq!(asked[0].rate, TokenRate { period: 200_000, burst: 5 });
}

#[tokio::test(start_paused = true)]
async fn the_store_never_lifts_the_configured_rate() {
    let store = Scripted::new(true);
    let (budget, start) = (store.budget(limits(5, 2)), Instant::now());
    let mut sent = Vec::new();
    for _ in 0..7 {
        sent.push((send(&budget, &team("a", 1)).await - start).as_millis());
    }
    assert!(sent[1] < 20 && (980..1100).contains(&sent[6]), "{sent:?}");
}

/// 5 a second for 4 replicas: a token in 800 ms, and none at the beginning.
#[tokio::test(start_paused = true)]
async fn without_the_store_a_replica_spends_its_part_from_an_empty_bucket() {
    let store = Scripted::new(false);
    let (budget, start) = (store.budget(limits(5, 8)), Instant::now());
    let mut sent = Vec::new();
    for _ in 0..3 {
        sent.push((send(&budget, &team("a", 1)).await - start).as_millis());
    }
    // It was not alone before twice the timeout had passed.
    assert!((1000..1020).contains(&sent[0]) && (2600..2640).contains(&sent[2]), "{sent:?}");
    assert_eq!(store.asked(), []);
    advance(60 * S).await;
    let start = Instant::now();
    let mut sent = Vec::new();
    for _ in 0..3 {
        sent.push((send(&budget, &team("a", 1)).await - start).as_millis());
    }
    assert!(sent[1] < 5 && (780..900).contains(&sent[2]), "a burst of 8 / 4: {sent:?}");
}

/// 8 a minute for 4 replicas: 2 at once, and another in 30 s.
#[tokio::test(start_paused = true)]
async fn without_the_store_a_replica_spends_its_part_of_a_teams_own_limit() {
    let store = Scripted::new(false);
    let budget = store.budget(limits(1000, 1000));
    // From an empty bucket.
    tokio::time::sleep(70 * S).await;
    let limited = Team { upstream: Rate::new(8, 60 * S), ..team("a", 1) };
    let told = async || {
        let (call, _waiter) = call_of(&limited, 60 * S);
        let refused = budget.acquire(&call).await.unwrap_err();
        assert_eq!(refused.reason(), crate::core::error::Reason::TeamRateLimit);
        refused.retry_after().unwrap()
    };
    // One that was not sent costs nothing.
    let (call, _waiter) = call_of(&limited, 60 * S);
    drop(budget.acquire(&call).await.unwrap());
    for _ in 0..2 {
        send(&budget, &limited).await;
    }
    assert_eq!(told().await, 30 * S);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_delays_by_three_timeouts() {
    let store = Scripted::new(true);
    let budget = store.budget(limits(1000, 1000));
    send(&budget, &team("a", 1)).await;
    advance(S).await;
    store.silent(true);
    let start = Instant::now();
    let took = send(&budget, &team("a", 1)).await - start;
    assert!((300 * MS..400 * MS).contains(&took), "{took:?}");
    let start = Instant::now();
    for _ in 0..20 {
        send(&budget, &team("a", 1)).await;
    }
    assert!(start.elapsed() < 100 * MS, "nothing waits for the store: {:?}", start.elapsed());
    store.silent(false);
    store.asked();
    tokio::time::sleep(3 * S).await;
    send(&budget, &team("a", 1)).await;
    assert!(store.asked().iter().any(|request| !request.teams.is_empty()), "it is asked again");
}

#[tokio::test(start_paused = true)]
async fn each_change_of_side_begins_with_an_empty_bucket() {
    let store = Scripted::new(true);
    let budget = store.budget(limits(4, 100));
    send(&budget, &team("a", 1)).await;
    for (is_up, least) in [(false, 1000 * MS), (true, 240 * MS)] {
        advance(60 * S).await;
        let start = Instant::now();
        store.is_up.send_replace(is_up);
        tokio::time::sleep(MS).await;
        let took = send(&budget, &team("a", 1)).await - start;
        assert!((least..least + 50 * MS).contains(&took), "{is_up}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_used_is_given_back_once() {
    let store = Scripted::new(true);
    let budget = store.budget(limits(100, 100));
    send(&budget, &team("a", 1)).await;
    store.refunds();
    // A permit that is dropped.
    let (call, _waiter) = call_of(&team("a", 1), 60 * S);
    drop(budget.acquire(&call).await.unwrap());
    tokio::time::sleep(10 * MS).await;
    assert_eq!(store.refunds(), [7]);
    // A token for a call that has given up meanwhile.
    let (call, waiter) = call_of(&team("a", 1), 60 * S);
    let late = GrantedToken { team: 0, after: 20 * MS, at: 9 };
    store.next(move |request| LedgerReply { tokens: vec![late], wait: S, ..grant(&request.teams, 0) });
    let waiting = tokio::spawn({
        let budget = budget.clone();
        async move { budget.acquire(&call).await.map(drop) }
    });
    tokio::time::sleep(10 * MS).await;
    drop(waiter);
    assert!(waiting.await.unwrap().is_err());
    tokio::time::sleep(2 * S).await;
    send(&budget, &team("b", 1)).await;
    assert_eq!(store.refunds(), [9]);
}

#[tokio::test(start_paused = true)]
async fn a_token_is_for_the_team_that_it_names() {
    let store = Scripted::new(true);
    let budget = store.budget(limits(100, 100));
    send(&budget, &team("a", 1)).await;
    tokio::time::sleep(S + 100 * MS).await;
    // The first ask is of one team alone, and nothing is free.
    store.next(|request| LedgerReply { wait: 100 * MS, ..grant(&request.teams, 0) });
    store.next(|request| {
        let other = request.teams.iter().position(|ask| ask.team == "<b>").unwrap();
        let token = GrantedToken { team: other, after: Duration::ZERO, at: 1 };
        LedgerReply { wait: 100 * MS, tokens: vec![token], ..grant(&request.teams, 0) }
    });
    let (calm, other) = (team("a", 1), team("b", 1));
    let spawn = |team: &Team| {
        let (budget, team) = (budget.clone(), team.clone());
        tokio::spawn(async move { send(&budget, &team).await })
    };
    let first = spawn(&calm);
    tokio::time::sleep(MS).await;
    let second = spawn(&other);
    let (first, second) = (first.await.unwrap(), second.await.unwrap());
    assert!(first > second + 50 * MS, "{:?}", first - second);
}

#[tokio::test(start_paused = true)]
async fn pauses_and_circuits_are_told_and_followed() {
    let store = Scripted::new(true);
    let budget = store.budget(limits(100, 100));
    attempt(&budget, &team("a", 1), AttemptOutcome::RateLimited(Some(9 * S), RateLimitHeaders::default())).await;
    tokio::time::sleep(MS).await;
    let asked = store.asked();
    assert!(asked.last().unwrap().pause > 8 * S, "{asked:?}");
    tokio::time::sleep(20 * S + 500 * MS).await;
    store.next(|_| LedgerReply { pause: 7 * S, ..grant(&[], 0) });
    tokio::time::sleep(S).await;
    assert!(budget.status().paused > 4 * S, "{:?}", budget.status());
    tokio::time::sleep(7 * S).await;
    store.next(|_| LedgerReply { open: 2 * S, opening: Some(7), ..grant(&[], 0) });
    tokio::time::sleep(S).await;
    assert!(budget.status().broken_for.is_some(), "{:?}", budget.status());
}

#[tokio::test(start_paused = true)]
async fn only_what_the_upstream_answered_opens_the_circuit_of_all() {
    for (outcome, is_told) in [(AttemptOutcome::Failed, true), (AttemptOutcome::Unreachable, false)] {
        let store = Scripted::new(true);
        let budget = store.budget(limits(100, 100));
        for _ in 0..10 {
            attempt(&budget, &team("a", 1), outcome).await;
        }
        assert!(budget.status().broken_for.is_some());
        tokio::time::sleep(2 * S).await;
        assert_eq!(store.asked().iter().any(|request| !request.open.is_zero()), is_told, "{outcome:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_task_ends_with_the_account() {
    let store = Scripted::new(true);
    let budget = store.budget(limits(100, 100));
    send(&budget, &team("a", 1)).await;
    drop(budget);
    tokio::time::sleep(MS).await;
    store.asked();
    tokio::time::sleep(10 * S).await;
    assert_eq!(store.asked(), []);
    assert_eq!(store.is_up.receiver_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn no_pause_is_longer_than_configured() {
    const YEAR: Duration = Duration::from_secs(365 * 86_400);
    let store = Scripted::new(true);
    let budget = store.budget(limits(100, 100));
    tokio::time::sleep(S).await;
    store.next(|_| LedgerReply { pause: YEAR, open: YEAR, opening: Some(7), ..grant(&[], 0) });
    tokio::time::sleep(2 * S).await;
    assert!(budget.status().paused <= 300 * S, "{:?}", budget.status());
}

/// A call of a request that has waited so long for the store before.
fn call_after(waited: Duration) -> (UpstreamCall, Waiter) {
    let (call, waiter) = call_of(&team("a", 1), 60 * S);
    call.context.store_wait.add(waited);
    (call, waiter)
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_for_its_token_as_long_as_its_request_may_still_wait() {
    // The timeout is 100 ms.
    for (waited, least, most) in [(200, 190, 205), (250, 140, 155), (400, 99, 105), (0, 299, 310)] {
        let store = Scripted::new(true);
        let budget = store.budget(limits(10_000, 10_000));
        send(&budget, &team("a", 1)).await;
        tokio::time::sleep(100 * MS).await;
        store.silent(true);
        let start = Instant::now();
        let (call, _waiter) = call_after(waited * MS);
        budget.acquire(&call).await.unwrap().spend();
        let took = start.elapsed();
        assert!((least * MS..most * MS).contains(&took), "after {waited} ms: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_answers_just_in_time_is_not_given_up() {
    let store = Scripted::new(true);
    let budget = store.budget(limits(10_000, 10_000));
    send(&budget, &team("a", 1)).await;
    tokio::time::sleep(S + 100 * MS).await;
    store.takes(99 * MS);
    for pause in [5, 50, 95, 0] {
        // Another call has just been asked for.
        let (first, _first) = call_after(Duration::ZERO);
        let (second, _second) = call_after(200 * MS);
        let asking = tokio::spawn({
            let budget = budget.clone();
            async move { budget.acquire(&first).await.unwrap().spend() }
        });
        tokio::time::sleep(pause * MS).await;
        let start = Instant::now();
        budget.acquire(&second).await.unwrap().spend();
        assert!(start.elapsed() < 200 * MS, "{:?}", start.elapsed());
        asking.await.unwrap();
        assert_eq!(budget.status().tokens, Some(1.0), "it is shared: {:?}", budget.status());
    }
}

/// 8 a minute for 4 replicas: 2 at once, and another in 30 s; 8 at once and another in 7.5 s while they share.
#[tokio::test(start_paused = true)]
async fn a_teams_own_limit_begins_empty_at_each_change_of_side() {
    let store = Scripted::new(true);
    let budget = store.budget(limits(1000, 1000));
    let rate = Rate::new(8, 60 * S);
    let [sent, silent, new] = ["sent", "silent", "new"].map(|name| Team { upstream: rate, ..team(name, 1) });
    let asks = async |call: &UpstreamCall| {
        budget.acquire(call).await.map(drop).map_err(|refused| refused.retry_after().unwrap())
    };
    let told = async |team: &Team| asks(&call_of(team, 60 * S).0).await;
    let (call, _waiter) = call_of(&sent, 60 * S);
    let before = budget.acquire(&call).await.unwrap();
    assert_eq!((told(&sent).await, told(&silent).await), (Ok(()), Ok(())), "full at the start");
    store.is_up.send_replace(false);
    tokio::time::sleep(S).await;
    for team in [&sent, &silent, &new] {
        assert_eq!(told(team).await, Err(29 * S), "{}", team.name);
    }
    // What was taken before the change does not come back after it. The next token is for the first that was refused.
    drop(before);
    assert_eq!(told(&sent).await, Err(59 * S));
    // Until nobody is expected to come back any more.
    tokio::time::sleep(120 * S).await;
    for _ in 0..2 {
        send(&budget, &sent).await;
    }
    assert!(told(&sent).await.is_err());
    tokio::time::sleep(3600 * S).await;
    store.is_up.send_replace(true);
    tokio::time::sleep(1600 * MS).await;
    let calls = [&sent, &silent, &new].map(|team| call_of(team, 60 * S));
    for (call, _) in &calls {
        assert_eq!(asks(call).await, Err(6 * S), "{}", call.team.name);
    }
    tokio::time::sleep(6 * S).await;
    assert_eq!(asks(&calls[2].0).await, Ok(()));
    tokio::time::sleep(60 * S).await;
    for _ in 0..8 {
        send(&budget, &sent).await;
    }
    assert!(told(&sent).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_refuses_the_budget_is_asked_about_once_a_second_and_the_replica_says_why() {
    let store = Scripted::new(true);
    let budget = store.budget(limits(10, 10));
    advance(MS).await;
    let refusal = StoreError::Failed("full".to_owned());
    *store.refusal.lock().unwrap() = Some(refusal.clone());
    // Many calls, which all change what the store would have to know.
    let calls = tokio::spawn(async move {
        loop {
            let (call, _waiter) = call_of(&team("a", 1), S);
            let _ = tokio::time::timeout(10 * MS, budget.acquire(&call)).await;
            tokio::time::sleep(MS).await;
        }
    });
    tokio::time::sleep(2 * S).await;
    assert_eq!(*store.standalone.lock().unwrap(), Some(refusal));
    store.asked();
    tokio::time::sleep(8 * S).await;
    let asked = store.asked().len();
    assert!((8..=33).contains(&asked), "{asked}");
    *store.refusal.lock().unwrap() = None;
    tokio::time::sleep(2 * S).await;
    assert_eq!(*store.standalone.lock().unwrap(), None);
    calls.abort();
}

#[tokio::test(start_paused = true)]
async fn an_account_that_is_not_configured_is_no_fault_of_the_store() {
    let store = Scripted::new(true);
    let budget = store.budget(limits(5, 5));
    send(&budget, &team("a", 1)).await;
    store.is_up.send_replace(false);
    tokio::time::sleep(S).await;
    assert!(store.standalone.lock().unwrap().is_some());
    budget.retire();
    tokio::time::sleep(S).await;
    assert_eq!(*store.standalone.lock().unwrap(), None);
    for is_up in [true, false, true] {
        store.is_up.send_replace(is_up);
        tokio::time::sleep(S).await;
        assert_eq!(*store.standalone.lock().unwrap(), None);
    }
}
