//! Dashboards that ask the same things again and again, and what they were answered.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value as Json;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::bound::{Seconds, now};
use super::support::*;

/// Time between two requests of one client.
const THINK: Duration = Duration::from_millis(50);
/// A request that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(15);
/// Queries that all clients share. More become stale each second than the budget can refresh.
const SHARED: u64 = 60;

/// What a client asks, and where.
#[derive(Debug, Clone)]
pub struct Asks {
    pub gateway: SocketAddr,
    pub team: Option<&'static str>,
    /// Something new each time, so that each request costs a token.
    pub only_new: bool,
}

/// One answer.
#[derive(Debug, Clone)]
pub struct Sample {
    pub asked: Seconds,
    pub answered: Seconds,
    pub team: Option<&'static str>,
    pub outcome: Result<Got, String>,
}

#[derive(Debug, Clone)]
pub struct Got {
    /// The number of the upstream's call that the page is from.
    pub made: Option<u64>,
    /// What `Age` says.
    pub age: u64,
}

/// Clients that ask until they are stopped.
pub struct Load {
    clients: JoinSet<()>,
    stop: watch::Sender<bool>,
    samples: Arc<Mutex<Vec<Sample>>>,
}

/// A query of this number. The simulator answers each, mostly with a count of 0.
pub fn query(number: u64) -> String {
    format!(
        r#"{{"query":{{"measures":["Conversation.Count"],"filters":[{{"op":"AND","expressions":[{{"op":"EQ","field":"Conversation.ConversationId","values":["{number}"]}}]}}]}}}}"#
    )
}

/// The header by which a team is known.
pub fn team_header(team: Option<&str>) -> String {
    team.map(|team| format!("Authorization: Bearer token-of-{team}\r\n")).unwrap_or_default()
}

impl Load {
    pub fn start(asks: Vec<Asks>) -> Self {
        let (stop, samples) = (watch::Sender::new(false), Arc::default());
        let mut clients = JoinSet::new();
        for (seed, asks) in (1..).zip(asks) {
            clients.spawn(client(asks, seed, stop.subscribe(), Arc::clone(&samples)));
        }
        Self { clients, stop, samples }
    }

    /// Stops the clients once they have been answered.
    pub async fn stop(self) -> Vec<Sample> {
        self.stop.send_replace(true);
        self.clients.join_all().await;
        std::mem::take(&mut *self.samples.lock().unwrap())
    }
}

async fn client(asks: Asks, seed: u64, mut stop: watch::Receiver<bool>, samples: Arc<Mutex<Vec<Sample>>>) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut next_new = 1000 + seed * 1_000_000;
    let mut connection = Client::connect(asks.gateway).await;
    while !*stop.borrow_and_update() {
        next_new += 1;
        let number = if asks.only_new { next_new } else { random.u64(..SHARED) };
        let request = post_to(QUERY, &team_header(asks.team), &query(number));
        let asked = now();
        let outcome = match tokio::time::timeout(PATIENCE, connection.try_ask(&request)).await {
            Ok(Some(answer)) => read(&answer),
            Ok(None) => Err("the connection was closed without an answer".to_owned()),
            Err(_) => Err("no answer in time".to_owned()),
        };
        if outcome.is_err() {
            connection = Client::connect(asks.gateway).await;
        }
        let sample = Sample { asked, answered: now(), team: asks.team, outcome };
        samples.lock().unwrap().push(sample);
        if !asks.only_new {
            let _ = tokio::time::timeout(THINK.mul_f64(0.5 + random.f64()), stop.changed()).await;
        }
    }
}

fn read(answer: &Answer) -> Result<Got, String> {
    if answer.status != 200 {
        return Err(format!("{}: {}", answer.status, answer.text()));
    }
    let page: Json = serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?;
    let age = answer.find("age").map_or(Ok(0), str::parse).map_err(|_| "an invalid Age".to_owned())?;
    Ok(Got { made: page["made"].as_u64(), age })
}
