//! A small Insights service, for people without an account, for demos and for tests.
//!
//! It has the documented data model with generated, seeded data, and really evaluates queries. It pages, authenticates,
//! limits rates and refuses invalid requests as Twilio's documents say. The received requests can be read, and the next
//! responses can be scripted. It shares with the gateway only how quantities are written, and answers like an
//! independent server.
//!
//! Not simulated: the delay with which real data becomes available.
//!
//! Two things can be set while it runs, under `/_simulator/`: what the next requests get (`faults`), and the outcome of
//! a query job (`jobs/{operationId}`: `PUT` with a `status`, and optionally an `error`, or `DELETE` to lose it). The
//! received requests are under `requests`.
//!
//! * `data` generates the data; `members` says what a member is; `catalog`,
//!   `cubes` and `outputs` name them;
//! * `query` parses a request, `evaluate` answers it with `aggregate` and `cell`, `page` divides the result,
//!   `time` handles calendars;
//! * [`jobs`] are queries that are answered later, with their [`status`]; `fields` are the measures that accounts add
//!   themselves;
//! * `limit`, [`faults`], [`job_faults`] and `journal` are the rate limit, the scripts and the log;
//! * `api` combines these for one request, `http` receives it and sends the `reply`; `error` is the format of
//!   errors.

mod aggregate;
mod api;
mod catalog;
mod cell;
mod cubes;
mod data;
mod error;
mod evaluate;
pub mod faults;
mod fields;
mod http;
pub mod job_faults;
pub mod jobs;
mod journal;
mod limit;
mod members;
mod outputs;
mod page;
mod query;
mod reply;
pub mod status;
mod time;

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::core::units::Rate;

use self::api::{Api, Clock};
use self::faults::{Fault, Faults};
use self::fields::Fields;
use self::job_faults::JobFault;
use self::jobs::{JobSettings, Jobs};
use self::journal::{Journal, Recorded};
use self::limit::Limiter;
use self::page::Tokens;

/// The number of conversations, if none is given.
pub const DEFAULT_ROWS: usize = 5000;

const MOST_CONNECTIONS: usize = 4096;
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
const DRAIN: Duration = Duration::from_secs(5);

/// The settings of a simulator.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Requests that each user may make, with a burst of one second's worth; `None` means no limit.
    pub rate: Option<Rate>,
    /// Added to every API response.
    pub latency: Duration,
    /// Determines the data.
    pub seed: u64,
    /// The number of conversations.
    pub rows: usize,
    /// Where the data ends; it begins 90 days before. The simulator's clock starts here.
    pub now: Timestamp,
    /// How query jobs run.
    pub jobs: JobSettings,
    /// The beginning of links in responses, such as `https://insights.twilio.com`; `None` for the request's own host.
    pub public_url: Option<String>,
}

/// A simulated Insights service. Clones share all state.
#[derive(Clone)]
pub struct Simulator {
    service: Arc<http::Service>,
}

#[cfg(test)]
impl Simulator {
    /// Without limits and delays, with the data of `rows` conversations.
    fn example(rows: usize) -> Self {
        Self::new(Settings {
            rate: None,
            latency: Duration::ZERO,
            seed: 5,
            rows,
            now: "2026-05-20T12:00:00Z".parse().unwrap(),
            jobs: JobSettings::default(),
            public_url: None,
        })
    }
}

impl Simulator {
    /// Generates the data.
    pub fn new(settings: Settings) -> Self {
        let Settings { rate, latency, seed, rows, now, jobs, public_url } = settings;
        let api = Api {
            data: data::generate(seed, rows, now),
            tokens: Tokens::new(&format!("{seed} {rows} {now}")),
            limiter: Limiter::new(rate),
            jobs: Jobs::new(jobs),
            fields: Fields::default(),
            clock: Clock::starting(now),
            public_url,
        };
        let service = http::Service {
            api: Arc::new(api),
            latency,
            faults: Faults::default(),
            journal: Journal::default(),
            in_flight: AtomicUsize::new(0),
        };
        Self { service: Arc::new(service) }
    }

    /// Serves HTTP/1.1, and HTTP/2 with prior knowledge, until `shutdown` completes. Then requests in progress get a
    /// few seconds to finish.
    pub async fn run(self, listener: TcpListener, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        let mut shutdown = pin!(shutdown);
        let mut builder = Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
        builder.http2().timer(TokioTimer::new());
        let connections = GracefulShutdown::new();
        let permits = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        loop {
            // First a permit, then a connection: beyond the limit, clients wait in the kernel's queue.
            let place = async { Arc::clone(&permits).acquire_owned().await.map_err(io::Error::other) };
            let accepted = async { Ok::<_, io::Error>((place.await?, listener.accept().await)) };
            let (permit, accepted) = tokio::select! {
                accepted = accepted => accepted?,
                () = &mut shutdown => break,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(_) => {
                    // No free descriptor, or a client that has already left: neither may end the service, and a busy
                    // loop would not help.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            };
            // Optional: the connection works without it.
            let _ = stream.set_nodelay(true);
            let service = Arc::clone(&self.service);
            let connection = builder.serve_connection(
                TokioIo::new(stream),
                service_fn(move |request| http::answer(Arc::clone(&service), request)),
            );
            let connection = connections.watch(connection.into_owned());
            tokio::spawn(async move {
                // A connection may end in an error, caused by its client or by a script.
                let _ = connection.await;
                drop(permit);
            });
        }
        drop(listener);
        // Connections that are still busy after the drain are closed when the runtime ends.
        let _ = tokio::time::timeout(DRAIN, connections.shutdown()).await;
        Ok(())
    }

    /// The API requests received so far, oldest first; the latest 10,000 of them.
    pub fn requests(&self) -> Vec<Recorded> {
        self.service.journal.entries()
    }

    /// Removes the received requests.
    pub fn clear_requests(&self) {
        self.service.journal.clear();
    }

    /// Adds a rule for the next query jobs. Fails when too many rules are pending.
    pub fn script_jobs(&self, rule: JobFault) -> Result<(), String> {
        self.service.api.jobs.script(rule)
    }

    /// Adds a rule for the next responses. Fails when too many rules are pending.
    pub fn script(&self, fault: Fault) -> Result<(), String> {
        self.service.faults.push(fault)
    }
}
