//! What the tests of the budget have in common: calls, and a store whose script runs in the time of a test.
//!
//! No test here depends on how fast the machine is, apart from those that are named `in_real_time_` and run on request.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::advance;

use super::ledger::{GrantedToken, LedgerReply, LedgerRequest, Refund, SCRIPT, TeamDemand, TokenRate, command, read};
use super::*;
use crate::budget::{AccountBudget, AttemptOutcome, CircuitPolicy};
use crate::core::backoff::Backoff;
use crate::core::error::GatewayError;
use crate::core::units::Rate;
use crate::replicas::StoreError;
use crate::replicas::test_server::TestServer;
use crate::request::call::UpstreamCall;
use crate::request::key::Key;
use crate::request::waiters::{Waiter, Waiters};
use crate::semantics::request_directives::Urgency;
use crate::twilio::endpoint::Operation;

mod circuit_tests;
mod damage_tests;
mod model_tests;
mod real_server_tests;
mod several_replicas_tests;
mod single_replica_tests;

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

fn limits(per_second: u32, burst: u32) -> Limits {
    Limits {
        rate: Rate::new(per_second, S),
        burst,
        concurrency: 1000,
        queue: 1000,
        adapt: true,
        max_pause: 300 * S,
        backoff: Backoff { base: 250 * MS, max: 20 * S },
        circuit: CircuitPolicy { consecutive: 10, ratio: 0.5, open: 5 * S },
    }
}

fn team(name: &str, weight: u32) -> Team {
    Team { weight, ..Team::example(name) }
}

/// A call that a client of this team waits for. Each asks for something else.
fn call_of(team: &Team, store_deadline: Duration) -> (UpstreamCall, Waiter) {
    let team = Arc::new(team.clone());
    let body = bytes::Bytes::copy_from_slice(&fastrand::u128(..).to_le_bytes());
    let key = Key::new(&team.account, Operation::Query, "", &body);
    let waiters = Waiters::of_clients();
    let waiter = waiters.join(&team, Urgency::new(3));
    let deadline = Instant::now() + store_deadline;
    (UpstreamCall { team, key, body, waiters, deadline, ..UpstreamCall::example(Operation::Query, "", "") }, waiter)
}

/// One attempt of a team that ends like this; when it was sent.
async fn attempt(budget: &AccountBudget, team: &Team, outcome: AttemptOutcome) -> Instant {
    let (call, _waiter) = call_of(team, 60 * S);
    let mut permit = budget.acquire(&call).await.unwrap();
    permit.spend();
    let sent = Instant::now();
    permit.end(outcome);
    sent
}

async fn send(budget: &AccountBudget, team: &Team) -> Instant {
    attempt(budget, team, AttemptOutcome::Answered(RateLimitHeaders::default())).await
}

/// The script on a real server, at times that the test says.
struct TimedScript {
    connection: redis::Connection,
    script: String,
}

impl TimedScript {
    fn new(server: &TestServer) -> Self {
        let script = SCRIPT.text().replace("redis.call('TIME')", "redis.call('MGET', 'seconds', 'micros')");
        // The keys must not expire in real time.
        let script = script.replace("redis.call('PEXPIRE',", "tostring(");
        Self { connection: server.connection(), script }
    }

    fn ask(&mut self, replica: &str, request: &LedgerRequest, now: i64) -> LedgerReply {
        let time = [("seconds", now / 1_000_000), ("micros", now % 1_000_000)];
        redis::cmd("MSET").arg(&time).exec(&mut self.connection).unwrap();
        let keys = ["budget", "limits", "waiting", "teams"].map(str::to_owned);
        let command = command(&self.script, &keys, replica, request);
        let reply: Vec<i64> = command.query(&mut self.connection).unwrap();
        read(&reply, request.teams.len()).unwrap()
    }
}

/// A store for several replicas under paused time: its script runs on a real server, and sees the paused time, too.
#[derive(Clone)]
struct SimulatedStore(Arc<Simulated>);

struct Simulated {
    server: TestServer,
    script: Mutex<TimedScript>,
    begun: Instant,
    replicas: u32,
    is_frozen: watch::Sender<bool>,
    /// What its clock shows more than at the beginning, apart from the time that has passed, in microseconds.
    ahead: AtomicI64,
}

impl SimulatedStore {
    /// The store of so many replicas; `None` where no server is installed.
    fn start(replicas: u32) -> Option<Self> {
        let server = TestServer::start()?;
        let script = Mutex::new(TimedScript::new(&server));
        let is_frozen = watch::Sender::new(false);
        Some(Self(Arc::new(Simulated {
            server,
            script,
            begun: Instant::now(),
            replicas,
            is_frozen,
            ahead: AtomicI64::new(0),
        })))
    }

    /// One replica's way to it, which takes `round_trip`.
    fn link(&self, round_trip: Duration) -> Link {
        let name = format!("{:032x}", fastrand::u128(..));
        Link { store: self.clone(), name, round_trip, is_up: watch::Sender::new(true) }
    }

    /// Runs nothing of what arrives until it thaws.
    fn freeze(&self, is_frozen: bool) {
        self.0.is_frozen.send_replace(is_frozen);
    }

    /// Runs another command. Its words have spaces between them, and commas stand for spaces in them.
    fn run<T: redis::FromRedisValue>(&self, command: &str) -> T {
        let mut words = command.split(' ');
        let mut command = redis::cmd(words.next().unwrap());
        command
            .arg(words.map(|word| word.replace(',', " ")).collect::<Vec<_>>())
            .query(&mut lock(&self.0.script).connection)
            .unwrap()
    }

    /// Microseconds since 1970 on its clock.
    fn now(&self) -> i64 {
        let passed = i64::try_from(self.0.begun.elapsed().as_micros()).unwrap();
        1_800_000_000_000_000 + self.0.ahead.load(SeqCst) + passed
    }
}

#[derive(Clone)]
struct Link {
    store: SimulatedStore,
    name: String,
    round_trip: Duration,
    is_up: watch::Sender<bool>,
}

impl Link {
    /// Opens or cuts it.
    fn reach(&self, is_up: bool) {
        self.is_up.send_replace(is_up);
    }

    /// A replica that takes this way.
    fn budget(&self, limits: Limits) -> AccountBudget {
        let clock = Clock::simulated();
        let quota = SharedQuota::over(self.clone(), &limits, clock);
        AccountBudget::with_quota("main".into(), limits, Box::new(quota), clock)
    }
}

impl Ledger for Link {
    async fn ask(&self, request: &LedgerRequest) -> Result<LedgerReply, StoreError> {
        let (link, request) = (self.clone(), request.clone());
        // What is sent arrives, though the replica gives up.
        let asked = tokio::spawn(async move {
            tokio::time::sleep(link.round_trip / 2).await;
            link.store.0.is_frozen.subscribe().wait_for(|is_frozen| !is_frozen).await.unwrap();
            let now = link.store.now();
            let reply = lock(&link.store.0.script).ask(&link.name, &request, now);
            tokio::time::sleep(link.round_trip / 2).await;
            reply
        });
        let answered = tokio::time::timeout(self.timeout(), asked).await;
        answered.map_err(|_| StoreError::Timeout).map(Result::unwrap)
    }

    fn watch_up(&self) -> watch::Receiver<bool> {
        self.is_up.subscribe()
    }

    fn set_standalone(&self, _: Option<&StoreError>) {}

    fn timeout(&self) -> Duration {
        200 * MS
    }

    fn replicas(&self) -> u32 {
        self.store.0.replicas
    }

    fn configured(&self) -> u32 {
        self.store.0.replicas
    }

    fn pseudonym(&self, kind: &'static str, name: &[u8]) -> String {
        match kind {
            "team" => String::from_utf8(name.to_vec()).unwrap(),
            _ => name.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }
}

/// The attempts that were sent, by their teams and times.
#[derive(Clone, Default)]
struct Sent(Arc<Mutex<Vec<Attempt>>>);

type Attempt = (Arc<str>, Instant);

impl Sent {
    fn of(&self, team: &str) -> usize {
        lock(&self.0).iter().filter(|(name, _)| **name == *team).count()
    }

    fn times(&self) -> Vec<Instant> {
        let mut times: Vec<_> = lock(&self.0).iter().map(|(_, at)| *at).collect();
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
                    let (call, _waiter) = call_of(&team, 60 * S);
                    let Ok(mut permit) = budget.acquire(&call).await else {
                        tokio::time::sleep(10 * MS).await;
                        continue;
                    };
                    permit.spend();
                    lock(&sent.0).push((Arc::clone(&team.name), Instant::now()));
                    permit.end(AttemptOutcome::Answered(RateLimitHeaders::default()));
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
