//! `demo`: simulator, gateway and admin page in one process.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use futures_util::FutureExt;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::Notify;

use super::runtime::{runtime, told_to_stop};
use super::serve::Failure;
use super::simulate::listen;
use super::{answer, exit, load_or_explain, logs};
use crate::config::{Config, Sources};
use crate::core::units::Rate;
use crate::gateway::Gateway;
use crate::simulator::jobs::JobSettings;
use crate::simulator::{DEFAULT_ROWS, Settings, Simulator};

/// Arguments of `demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// Seed of the generated data
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u64,
    /// Address of the simulator
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:4010")]
    pub simulator: SocketAddr,
}

/// Runs the demo until it is told to stop.
pub fn run(args: DemoArgs) -> ExitCode {
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::from(error).explain(),
    };
    runtime.block_on(async {
        let listener = match listen(args.simulator).await {
            Ok(listener) => listener,
            Err(failure) => return failure.explain(),
        };
        let upstream = match listener.local_addr() {
            Ok(address) => format!("http://{address}"),
            Err(error) => return Failure::from(error).explain(),
        };
        let config = match load_or_explain(&sources(&upstream)) {
            Ok(config) => config,
            Err(code) => return code,
        };
        let _last_lines = logs::install(&config.log);
        match demo(config, args.seed, listener, &upstream).await {
            Ok(()) => ExitCode::from(exit::DONE),
            Err(failure) => failure.explain(),
        }
    })
}

/// This process's settings with the simulator's account, because a demo must never spend a real account's quota.
fn sources(upstream: &str) -> Sources {
    let mut sources = Sources::from_process(None);
    sources
        .environment
        .retain(|name, _| !name.starts_with("TWILIO_") && !name.starts_with("INSIGHTS_GATEWAY_ACCOUNTS__"));
    sources
        .with_variable("TWILIO_ACCOUNT_SID", "AC00000000000000000000000000000000")
        .with_variable("TWILIO_API_KEY", "SK00000000000000000000000000000000")
        .with_variable("TWILIO_API_SECRET", "secret")
        .with_flag("upstream.url", upstream)
}

async fn demo(config: Config, seed: u64, listener: TcpListener, upstream: &str) -> Result<(), Failure> {
    let stop = told_to_stop()?.boxed().shared();
    let gateway = Gateway::bind(config)?;
    let settings = Settings {
        rate: Rate::new(5, Duration::from_secs(1)),
        latency: Duration::from_millis(80),
        seed,
        rows: DEFAULT_ROWS,
        now: Timestamp::now(),
        jobs: JobSettings::default(),
        public_url: None,
    };
    let simulator = tokio::spawn(Simulator::new(settings).run(listener, stop.clone()));
    answer(&introduction(&gateway, upstream));
    gateway.run(None, Arc::new(Notify::new()), stop).await;
    match simulator.await {
        Ok(result) => Ok(result?),
        // It panicked, which has been reported. The gateway has drained anyway.
        Err(_) => Ok(()),
    }
}

fn introduction(gateway: &Gateway, upstream: &str) -> String {
    let shown = |address: Option<SocketAddr>| address.map_or_else(|| "-".to_owned(), |a| format!("http://{a}"));
    let (data, admin) = (shown(gateway.data_address()), shown(gateway.admin_address()));
    let domain = format!("{data}/v3/InsightsDomains/Conversations");
    let query = r#"{"query":{"measures":["Conversation.Count"],"dimensions":["Conversation.ConversationStatus"]}}"#;
    let post = format!("curl -i {domain}/Query -H 'Content-Type: application/json' -d '{query}'");
    format!(
        "\n  gateway    {data}\n  admin      {admin}\n  simulator  {upstream}\n\n\
         Paste these, one after the other; the third is answered from the cache:\n\n\
         curl -i {domain}/Metadata\n{post}\n{post}\n\nStop with Ctrl-C.\n\n"
    )
}
