//! A dashboard's day in a minute: clients send the same requests at the same time to an upstream that grants five
//! requests a second, some directly and some through the gateway.
//!
//! ```text
//! cargo bench --bench dashboard_day               # a minute
//! cargo bench --bench dashboard_day -- --seconds 20
//! ```
//!
//! Twenty clients ask for 50 queries in Zipf order, each a quarter of a second after its last response. Pages are fresh
//! for 5 s, so more become stale than five requests a second can refresh. The upstream answers after 80 ms, and beyond
//! five requests in a second of the clock with 429 and Twilio's headers. Clients without the gateway retry as Twilio's
//! Node SDK does where `autoRetry` is on: three times, on 429, after a random time of up to 100 ms × 2ⁿ. Both groups
//! have a separate upstream.
//!
//! Ends with an error when the gateway does not fulfil its promises.

#![expect(clippy::disallowed_methods, reason = "real time is what is measured here")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run has to stop")]

mod workload;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use insights_gateway::config::{self, Sources};
use insights_gateway::gateway::Gateway;
use tokio::sync::{Notify, oneshot};

use workload::{FRESH, GRANTED, Row, Upstream, WINDOW, clients};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let seconds = arguments.iter().position(|argument| argument == "--seconds");
    let seconds = seconds.and_then(|at| arguments.get(at + 1)?.parse().ok()).unwrap_or(60);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(run(Duration::from_secs(seconds)))
}

async fn run(length: Duration) -> ExitCode {
    let begun = Instant::now();
    let (alone, behind) = (Upstream::start(begun).await, Upstream::start(begun).await);
    let (gateway, stop) = start_gateway(behind.address).await;
    let (upstream, gateway) = ([alone.address], [gateway]);
    let (by_themselves, through_it) =
        tokio::join!(clients(&upstream, begun, length, true), clients(&gateway, begun, length, false));
    let elapsed = begun.elapsed();
    drop(stop);

    println!("20 clients, 50 queries in Zipf order, upstream 5 a second and 80 ms, {} s", length.as_secs());
    println!();
    Row::head();
    let direct = Row::of(&by_themselves, &alone, elapsed);
    let gateway = Row::of(&through_it, &behind, elapsed);
    direct.print("direct, Node SDK's retries");
    gateway.print("gateway");

    let limited = through_it.iter().filter(|answer| answer.status == 429).count();
    let promises = [
        (gateway.answered >= 0.999, "99.9 % of the requests are answered"),
        (limited == 0, "no 429 reaches a client"),
        (gateway.calls.all() <= 1.0 + f64::from(GRANTED) * elapsed.as_secs_f64(), "it sends at most the granted calls"),
        (gateway.oldest <= (FRESH + WINDOW).as_secs_f64(), "nothing is older than its window"),
    ];
    let broken: Vec<_> = promises.iter().filter(|(kept, _)| !kept).map(|(_, promise)| *promise).collect();
    if broken.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!("broken: {}", broken.join("; "));
    ExitCode::FAILURE
}

async fn start_gateway(upstream: SocketAddr) -> (SocketAddr, oneshot::Sender<()>) {
    let settings = [
        ("server.listen", "127.0.0.1:0".to_owned()),
        ("admin.listen", "127.0.0.1:0".to_owned()),
        ("upstream.url", format!("http://{upstream}")),
        ("accounts.main.account_sid", "AC1".to_owned()),
        ("accounts.main.api_key", "SK1".to_owned()),
        ("accounts.main.api_secret", "secret".to_owned()),
        ("accounts.main.rate", format!("{GRANTED}/s")),
        ("accounts.main.burst", "1".to_owned()),
        ("cache.query.fresh", format!("{}s", FRESH.as_secs())),
        ("cache.query.stale_while_revalidate", format!("{}s", WINDOW.as_secs())),
        ("cache.query.stale_if_error", format!("{}s", WINDOW.as_secs())),
        ("log.access", "false".to_owned()),
    ];
    let sources = settings.into_iter().fold(Sources::default(), |sources, (key, value)| sources.with_flag(key, value));
    let gateway = Gateway::bind(config::load(&sources).unwrap_or_else(|faults| panic!("{faults}"))).unwrap();
    let address = gateway.data_address().unwrap();
    let (stop, stopped) = oneshot::channel();
    tokio::spawn(gateway.run(None, Arc::new(Notify::new()), async { drop(stopped.await) }));
    (address, stop)
}
