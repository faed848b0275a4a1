//! `simulate`: the local Insights API.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use tokio::net::TcpListener;

use super::exit;
use super::output::explain;
use super::runtime::{runtime, told_to_stop};
use super::serve::Failure;
use crate::core::units::{Rate, parse_duration, parse_rate};
use crate::simulator::jobs::JobSettings;
use crate::simulator::{Settings, Simulator};

/// A rate; `None` means no limit. It has a name so that clap does not treat it as an optional argument.
pub type MaybeRate = Option<Rate>;

// Not in the doc comment, which would need brackets around the URL.
const PUBLIC_URL: &str =
    "What links in answers begin with, such as https://insights.twilio.com; default: the address that the client used";

/// Arguments of `simulate`.
#[derive(Debug, Clone, Args)]
pub struct SimulateArgs {
    /// Address to listen on
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:4010")]
    pub listen: SocketAddr,
    /// Rate above which it answers 429, such as 5/s or 300/min; 0/s means no limit
    #[arg(long, value_name = "RATE", default_value = "5/s", value_parser = parse_rate)]
    pub rate: MaybeRate,
    /// Time that an answer takes, such as 80ms
    #[arg(long, value_name = "DURATION", default_value = "80ms", value_parser = parse_duration)]
    pub latency: Duration,
    /// Time that a query job takes, such as 10s; longer if many run at the same time
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    pub jobs_take: Duration,
    /// What links in answers begin with.
    #[arg(long, value_name = "URL", value_parser = public_url, help = PUBLIC_URL)]
    pub public_url: Option<String>,
    /// Seed of the generated data; the same seed gives the same conversations
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u64,
    /// Conversations to generate, at most 1000000
    #[arg(long, value_name = "N", default_value_t = 5000, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub rows: u32,
}

fn public_url(text: &str) -> Result<String, &'static str> {
    let uri: http::Uri = text.parse().map_err(|_| "not a URL")?;
    match (uri.scheme_str(), uri.query()) {
        (Some("http" | "https"), None) => Ok(text.to_owned()),
        _ => Err("expected http://host or https://host, perhaps with a port and a path"),
    }
}

/// Runs the simulator until it is told to stop.
pub fn run(args: SimulateArgs) -> ExitCode {
    let simulated = match runtime() {
        Ok(runtime) => runtime.block_on(simulate(args)),
        Err(error) => Err(error.into()),
    };
    match simulated {
        Ok(()) => ExitCode::from(exit::DONE),
        Err(failure) => failure.explain(),
    }
}

async fn simulate(args: SimulateArgs) -> Result<(), Failure> {
    let stop = told_to_stop()?;
    let address = args.listen;
    let listener = TcpListener::bind(address).await.map_err(|source| Failure::Named {
        address: address.to_string(),
        source,
        flag: "--listen",
    })?;
    explain(&format!(
        "simulated Insights API on http://{} (any account SID, password \"secret\")",
        listener.local_addr()?
    ));
    let simulator = Simulator::new(Settings {
        rate: args.rate,
        latency: args.latency,
        seed: args.seed,
        rows: args.rows as usize,
        now: Timestamp::now(),
        jobs: JobSettings { takes: args.jobs_take, ..JobSettings::default() },
        public_url: args.public_url,
    });
    simulator.run(listener, stop).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(args: &[&str]) -> SimulateArgs {
        let line = ["insights-gateway", "simulate"].iter().chain(args);
        match Cli::try_parse_from(line).map(|cli| cli.command) {
            Ok(Command::Simulate(args)) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn quantities_are_read_in_our_units() {
        let defaults = parse(&[]);
        assert_eq!(defaults.rate, Rate::new(5, Duration::from_secs(1)));
        assert_eq!(defaults.latency, Duration::from_millis(80));
        let given = parse(&["--rate", "0/s", "--latency", "0s", "--jobs-take=1m"]);
        assert_eq!((given.rate, given.latency), (None, Duration::ZERO));
        assert_eq!(given.jobs_take, Duration::from_secs(60));
    }

    #[test]
    fn links_can_begin_with_another_address() {
        assert_eq!(parse(&[]).public_url, None);
        let url = "https://insights.twilio.com";
        assert_eq!(parse(&["--public-url", url]).public_url.as_deref(), Some(url));
        for wrong in ["insights.twilio.com", "ftp://x", "http://", "http://x?y", "/x"] {
            assert!(public_url(wrong).is_err(), "{wrong}");
        }
    }
}
