//! Shared by the examples: a simulated Twilio, and a configuration that uses it.

use std::error::Error;
use std::future::pending;

use http::{Request, header};
use insights_gateway::config::{self, Config, Sources};
use insights_gateway::simulator::{DEFAULT_ROWS, Settings, Simulator};
use jiff::Timestamp;
use tokio::net::TcpListener;

/// Starts a simulator, and returns a configuration with one account that uses it. There are no teams, so every client
/// on this machine may send queries.
pub async fn start() -> Result<Config, Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let upstream = format!("http://{}", listener.local_addr()?);
    let settings = Settings {
        rate: None,
        latency: Default::default(),
        seed: 42,
        rows: DEFAULT_ROWS,
        now: Timestamp::now(),
        jobs: Default::default(),
        public_url: None,
    };
    tokio::spawn(Simulator::new(settings).run(listener, pending()));
    let sources = Sources::default()
        .with_flag("upstream.url", upstream)
        .with_flag("accounts.main.account_sid", "AC00000000000000000000000000000000")
        .with_flag("accounts.main.api_key", "SK00000000000000000000000000000000")
        .with_flag("accounts.main.api_secret", "secret");
    Ok(config::load(&sources)?)
}

/// A query, sent to the gateway at this address.
pub fn query<B: From<&'static str>>(gateway: &str) -> http::Result<Request<B>> {
    let query = r#"{"query":{"measures":["Conversation.Count"],"dimensions":["Conversation.ConversationStatus"]}}"#;
    Request::post(format!("http://{gateway}/v3/InsightsDomains/Conversations/Query"))
        .header(header::HOST, gateway)
        .header(header::CONTENT_TYPE, "application/json")
        .body(query.into())
}
