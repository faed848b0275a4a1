//! `demo`: simulator, gateway and admin page in one process.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use futures_util::FutureExt;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::Notify;

use super::client::Address;
use super::output::answer;
use super::runtime::{runtime, told_to_stop};
use super::serve::Failure;
use super::sources::load_or_explain;
use super::{exit, logs, traffic};
use crate::config::{Config, Sources};
use crate::core::units::Rate;
use crate::gateway::Gateway;
use crate::simulator::jobs::JobSettings;
use crate::simulator::{DEFAULT_ROWS, Settings, Simulator};

/// Arguments of `demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// Data plane address; default: 127.0.0.1:8080, or a free port if that is in use [key: server.listen]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// Admin plane address; default: 127.0.0.1:9090, or a free port if that is in use [key: admin.listen]
    #[arg(long, value_name = "ADDR")]
    pub admin_listen: Option<SocketAddr>,
    /// Address of the simulator; default: 127.0.0.1:4010, or a free port if that is in use
    #[arg(long, value_name = "ADDR")]
    pub simulator: Option<SocketAddr>,
    /// Let a few dashboards send queries. Access lines are off then, unless INSIGHTS_GATEWAY_LOG__ACCESS=true
    #[arg(long)]
    pub traffic: bool,
    /// Seed of the generated data
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u64,
}

/// Runs the demo until it is told to stop.
pub fn run(args: DemoArgs) -> ExitCode {
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::from(error).explain(),
    };
    runtime.block_on(async {
        let (listener, sources) = match open(&args).await {
            Ok(opened) => opened,
            Err(failure) => return failure.explain(),
        };
        let config = match load_or_explain(&sources) {
            Ok(config) => config,
            Err(code) => return code,
        };
        let _last_lines = logs::install(&config.log);
        match demo(config, &args, listener).await {
            Ok(()) => ExitCode::from(exit::DONE),
            Err(failure) => failure.explain(),
        }
    })
}

/// Opens the simulator's listener, and makes the gateway's settings.
async fn open(args: &DemoArgs) -> Result<(TcpListener, Sources), Failure> {
    let simulator = listen(args.simulator, 4010, "--simulator").await?;
    let mut sources = sources(&format!("http://{}", simulator.local_addr()?), args.traffic);
    for (key, given, port, flag) in
        [("server.listen", args.listen, 8080, "--listen"), ("admin.listen", args.admin_listen, 9090, "--admin-listen")]
    {
        let variable = format!("INSIGHTS_GATEWAY_{}", key.to_uppercase().replace('.', "__"));
        // An address from the environment is used unchanged.
        if given.is_some() || !sources.environment.contains_key(&variable) {
            // Closed again at once, because the gateway opens its ports itself.
            let address = listen(given, port, flag).await?.local_addr()?;
            sources = sources.with_flag(key, given.unwrap_or(address).to_string());
        }
    }
    Ok((simulator, sources))
}

/// Listens on the address of `flag` if it is given, otherwise on `port` of loopback, or on a free port if that one is
/// taken.
async fn listen(named: Option<SocketAddr>, port: u16, flag: &'static str) -> Result<TcpListener, Failure> {
    let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let opened = match named {
        Some(address) => TcpListener::bind(address).await,
        None => match TcpListener::bind(loopback(port)).await {
            Ok(listener) => Ok(listener),
            Err(_) => TcpListener::bind(loopback(0)).await,
        },
    };
    let address = named.unwrap_or(loopback(port)).to_string();
    opened.map_err(|source| Failure::Named { address, source, flag })
}

/// This process's settings with the simulator's account, without teams and without a store. A demo must never spend a real
/// account's quota or count as a replica of real gateways, and its users have no access token.
fn sources(upstream: &str, with_traffic: bool) -> Sources {
    const OTHERS: [&str; 4] =
        ["TWILIO_", "INSIGHTS_GATEWAY_ACCOUNTS__", "INSIGHTS_GATEWAY_TEAMS__", "INSIGHTS_GATEWAY_SHARED__"];
    let mut sources = Sources::from_process(None);
    sources.environment.retain(|name, _| !OTHERS.iter().any(|prefix| name.starts_with(prefix)));
    if with_traffic && !sources.environment.contains_key("INSIGHTS_GATEWAY_LOG__ACCESS") {
        // Access lines would scroll the commands to paste off the screen.
        sources = sources.with_variable("INSIGHTS_GATEWAY_LOG__ACCESS", "false");
    }
    sources
        .with_variable("TWILIO_ACCOUNT_SID", "AC00000000000000000000000000000000")
        .with_variable("TWILIO_API_KEY", "SK00000000000000000000000000000000")
        .with_variable("TWILIO_API_SECRET", "secret")
        .with_flag("upstream.url", upstream)
}

async fn demo(config: Config, args: &DemoArgs, listener: TcpListener) -> Result<(), Failure> {
    let stop = told_to_stop()?.boxed().shared();
    let upstream = config.upstream.url.to_string();
    let gateway = Gateway::bind(config)?;
    let settings = Settings {
        rate: Rate::new(5, Duration::from_secs(1)),
        latency: Duration::from_millis(80),
        seed: args.seed,
        rows: DEFAULT_ROWS,
        now: Timestamp::now(),
        jobs: JobSettings::default(),
        public_url: None,
    };
    let simulator = tokio::spawn(Simulator::new(settings).run(listener, stop.clone()));
    let data = gateway.data_address().map(|address| format!("http://{}", reachable(address)));
    let data = data.or_else(|| gateway.data_addresses().into_iter().next()).unwrap_or_default();
    let admin = gateway.admin_address().map(|address| format!("http://{}/", reachable(address))).unwrap_or_default();
    answer(&introduction(&data, &admin, &upstream));
    if let Some(address) = Address::parse(&data).ok().filter(|_| args.traffic) {
        let stop = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = traffic::ask_for_ever(address) => {}
                () = stop => {}
            }
        });
    }
    gateway.run(None, Arc::new(Notify::new()), stop).await;
    match simulator.await {
        Ok(result) => Ok(result?),
        // It panicked, which has been reported. The gateway has drained anyway.
        Err(_) => Ok(()),
    }
}

/// The address that a client on this machine can use: an unspecified address becomes loopback.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

/// The addresses, and the lines to paste into a shell.
fn introduction(data: &str, admin: &str, upstream: &str) -> String {
    let target = match data.strip_prefix("unix:") {
        Some(path) => format!("--unix-socket '{}' http://localhost", path.replace('\'', r"'\''")),
        None => data.to_owned(),
    };
    let domain = format!("{target}/v3/InsightsDomains/Conversations");
    let query = r#"{"query":{"measures":["Conversation.Count"],"dimensions":["Conversation.ConversationStatus"]}}"#;
    let post = format!("curl -i {domain}/Query -H 'Content-Type: application/json' -d '{query}'");
    format!(
        "\n  gateway    {data}\n  admin      {admin}\n  simulator  {upstream}\n\n\
         Paste these, one after the other; the third is answered from the cache:\n\n\
         curl -i {domain}/Metadata\n{post}\n{post}\n\nStop with Ctrl-C.\n\n"
    )
}
