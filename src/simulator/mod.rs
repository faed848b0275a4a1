//! A small Insights service of one's own, for people without an account, for demos and for tests.
//!
//! It has the documented data model with generated, seeded data, and really evaluates queries; it pages,
//! authenticates, limits rates and refuses nonsense as the documents say Twilio does. What it has received
//! can be read, and what it answers next can be scripted. It knows nothing of the gateway but how
//! quantities are written, and answers like a stranger's server.
//!
//! Not simulated: the delay with which real data arrives.
//!
//! Two things are told to it while it runs, under `/_simulator/`: what the next requests shall get (`faults`), and
//! what becomes of a query job (`jobs/{operationId}`: `PUT` with a `status`, and perhaps an `error`, or `DELETE` to lose
//! it). What it has received is under `requests`.
//!
//! * [`data`] generates the history, [`catalog`], [`cubes`] and [`outputs`] name what can be asked of it;
//! * [`query`] reads a request, [`evaluate`] answers it with [`aggregate`] and [`cell`], [`page`] cuts the
//!   answer, [`time`] knows calendars;
//! * [`jobs`] are the queries that are answered later, with their [`status`]; [`fields`] the measures that accounts
//!   add themselves;
//! * [`limit`], [`faults`], [`job_faults`] and [`journal`] are the rate limit, the scripts and the log;
//! * [`api`] puts these together for one request, [`http`] receives it and sends the [`reply`]; [`error`] is the shape of
//!   refusals.

pub mod aggregate;
pub mod api;
pub mod catalog;
pub mod cell;
pub mod cubes;
pub mod data;
pub mod error;
pub mod evaluate;
pub mod faults;
pub mod fields;
pub mod http;
pub mod job_faults;
pub mod jobs;
pub mod journal;
pub mod limit;
pub mod outputs;
pub mod page;
pub mod query;
pub mod reply;
pub mod status;
pub mod time;

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

/// Conversations that are generated when nobody says otherwise.
pub const DEFAULT_ROWS: usize = 5000;

const MOST_CONNECTIONS: usize = 4096;
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
const DRAIN: Duration = Duration::from_secs(5);

/// What a simulator is like.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Requests that each user may make, with a burst of one second's worth; `None` is no limit.
    pub rate: Option<Rate>,
    /// Added to every API answer.
    pub latency: Duration,
    /// Decides the data.
    pub seed: u64,
    /// How many conversations.
    pub rows: usize,
    /// Where the data ends; it begins 90 days before. Query jobs begin here too.
    pub now: Timestamp,
    /// How query jobs run.
    pub jobs: JobSettings,
    /// What links in answers begin with, such as `https://insights.twilio.com`; `None` is the request's own host.
    pub public_url: Option<String>,
}

/// A simulated Insights service. Clones share everything.
#[derive(Clone)]
pub struct Simulator {
    service: Arc<http::Service>,
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

    /// Serves HTTP/1.1, and HTTP/2 with prior knowledge, until `shutdown` completes; then requests in
    /// flight get a few seconds to finish.
    pub async fn run(self, listener: TcpListener, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        let mut shutdown = pin!(shutdown);
        let mut builder = Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
        builder.http2().timer(TokioTimer::new());
        let connections = GracefulShutdown::new();
        let permits = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        loop {
            // A place before a connection: beyond the bound, callers wait in the kernel's queue.
            let place = async { Arc::clone(&permits).acquire_owned().await.map_err(io::Error::other) };
            let accepted = async { Ok::<_, io::Error>((place.await?, listener.accept().await)) };
            let (permit, accepted) = tokio::select! {
                accepted = accepted => accepted?,
                () = &mut shutdown => break,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(_) => {
                    // Out of descriptors, or a caller that left already: neither ends the service, but a tight loop would.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            };
            // Only a hint: the connection works without it.
            let _ = stream.set_nodelay(true);
            let service = Arc::clone(&self.service);
            let connection = builder.serve_connection(
                TokioIo::new(stream),
                service_fn(move |request| http::answer(Arc::clone(&service), request)),
            );
            let connection = connections.watch(connection.into_owned());
            tokio::spawn(async move {
                // How a connection ends is its client's affair, or a script's.
                let _ = connection.await;
                drop(permit);
            });
        }
        drop(listener);
        // Whoever is still busy after the drain is cut off when the runtime ends.
        let _ = tokio::time::timeout(DRAIN, connections.shutdown()).await;
        Ok(())
    }

    /// The API requests received so far, oldest first; the latest 10,000 of them.
    pub fn requests(&self) -> Vec<Recorded> {
        self.service.journal.entries()
    }

    /// Forgets the requests received so far.
    pub fn clear_requests(&self) {
        self.service.journal.clear();
    }

    /// Scripts the next query jobs, behind what is scripted already. Fails when too many rules are pending.
    pub fn script_jobs(&self, rule: JobFault) -> Result<(), String> {
        self.service.api.jobs.script(rule)
    }

    /// Scripts the next answers, behind what is scripted already. Fails when too many rules are pending.
    pub fn script(&self, fault: Fault) -> Result<(), String> {
        self.service.faults.push(fault)
    }
}
