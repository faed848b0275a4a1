use std::sync::Arc;

use http::{HeaderMap, StatusCode};
use tokio::time::timeout;

use super::*;
use crate::accounts::Team;
use crate::config::Shared;
use crate::core::clock::Instant;
use crate::core::error::{GatewayError, Reason};
use crate::replicas::test_server::{TestServer, until};
use crate::request::call::UpstreamResponse;
use crate::request::key::Key;
use crate::request::response::Representation;
use crate::request::waiters::Waiters;

mod claim_tests;
mod clock_tests;
mod damage_tests;
mod outage_tests;
mod purge_tests;

const MS: Duration = Duration::from_millis(1);
/// Nothing here takes this long.
const PATIENCE: Duration = Duration::from_secs(10);

fn wanted() -> ClaimRequest {
    let team = Arc::new(Team::example("local"));
    let key = Key::new(&team.account, Operation::Query, "", b"query");
    ClaimRequest {
        team,
        waiters: Waiters::of_clients(),
        operation: Operation::Query,
        key,
        first: None,
        is_forced: false,
        not_before: None,
        is_new: false,
        context: Arc::default(),
    }
}

/// Of a client that demands a new response.
fn forced() -> ClaimRequest {
    ClaimRequest { is_forced: true, ..wanted() }
}

/// Of a client for whom no flight does that began before now.
fn since_now(clock: Clock) -> ClaimRequest {
    ClaimRequest { not_before: Some(clock.moment()), ..wanted() }
}

fn response(body: &'static str, stored: bool) -> FlightResult {
    let answer =
        UpstreamResponse { status: StatusCode::OK, headers: HeaderMap::new(), body: body.into(), next_token: None };
    FlightResult { result: Ok(Arc::new(Representation::new(answer, &[]))), stored, age: None, by_another: false }
}

fn failure() -> FlightResult {
    FlightResult::failed(GatewayError::new(Reason::UpstreamUnreachable, "no connection").with_retry_after(2000 * MS))
}

struct Replica {
    store: SharedStore,
    flights: SharedFlights,
    clock: Clock,
}

impl Replica {
    async fn of(server: &TestServer) -> Self {
        Self::with(server, server.settings()).await
    }

    async fn with(server: &TestServer, settings: Shared) -> Self {
        let clock = Clock::new();
        let store = server.replica_with(settings, clock).await;
        Self { flights: SharedFlights::new(store.clone(), clock), store, clock }
    }

    async fn three(server: &TestServer) -> [Self; 3] {
        [Self::of(server).await, Self::of(server).await, Self::of(server).await]
    }

    async fn claim(&self, request: &ClaimRequest) -> ClaimOutcome {
        timeout(PATIENCE, self.flights.claim(request)).await.expect("a claim ends")
    }

    async fn lead(&self, request: &ClaimRequest) -> FillLease {
        match self.claim(request).await {
            ClaimOutcome::Lead(lease) => lease,
            turn => panic!("{turn:?} instead of the lead"),
        }
    }

    async fn join(&self, request: &ClaimRequest) -> BoxFuture<'static, WaitOutcome> {
        match self.claim(request).await {
            ClaimOutcome::Wait(ends) => ends,
            turn => panic!("{turn:?} instead of a wait"),
        }
    }

    /// Everything in the store: the keys with their expiry in milliseconds, and the parts of their values.
    async fn content(&self) -> Vec<(String, i64, Vec<u8>)> {
        static DUMP: LuaScript = LuaScript::of(&[r"
local all = {}
for _, key in ipairs(redis.call('KEYS', '*flight*')) do
  local kind = redis.call('TYPE', key).ok
  local value = kind == 'hash' and table.concat(redis.call('HGETALL', key), ' ') or redis.call('GET', key)
  table.insert(all, {key, redis.call('PTTL', key), value})
end
return all"]);
        self.store.run("test", &DUMP.call::<&str>(&[])).await.unwrap()
    }

    /// Waits until the lock lasts longer than before.
    async fn sees_a_renewal(&self) {
        let mut left = self.content().await[0].1;
        let renewed = async {
            loop {
                let now = self.content().await[0].1;
                if now > left {
                    return;
                }
                left = now;
                tokio::time::sleep(5 * MS).await;
            }
        };
        timeout(PATIENCE, renewed).await.expect("a leader that lives renews its lock");
    }

    async fn is_free(&self) -> bool {
        self.content().await.is_empty()
    }

    async fn becomes_free(&self) {
        let free = async {
            while !self.is_free().await {
                tokio::time::sleep(5 * MS).await;
            }
        };
        timeout(PATIENCE, free).await.expect("the lock is given back");
    }
}

impl std::fmt::Debug for ClaimOutcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Lead(_) => "Lead",
            Self::Wait(_) => "Wait",
            Self::Stored(StoredSize::Usual, _) => "Stored",
            Self::Stored(StoredSize::Large, _) => "Stored, and large",
            Self::Unavailable => "Unavailable",
        })
    }
}

async fn ended(ends: BoxFuture<'static, WaitOutcome>) -> WaitOutcome {
    timeout(PATIENCE, ends).await.expect("a wait ends")
}

fn body(waited: WaitOutcome) -> String {
    match waited {
        WaitOutcome::Ended(FlightResult { result: Ok(page), by_another: true, .. }) => {
            String::from_utf8(page.body.to_vec()).unwrap()
        }
        waited => panic!("{waited:?}"),
    }
}
