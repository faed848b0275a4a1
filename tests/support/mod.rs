//! Helpers of the tests on real sockets: an upstream that misbehaves on demand, a gateway in this process, and a client
//! that sends exactly the bytes that it is given.
//!
//! They use only the gateway's public interface and free ports. They do not sleep until something has probably
//! happened: tests wait for events, and [`within`] limits every wait.

#![allow(dead_code, reason = "every test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

pub mod certificate;
pub mod client;
pub mod events;
pub mod faults;
pub mod gateway;
pub mod openapi;
pub mod process;
pub mod store;
pub mod upstream;

use std::time::Duration;

#[allow(unused_imports, reason = "every test binary uses its own part")]
pub use client::{Answer, Client, refusal};
#[allow(unused_imports, reason = "every test binary uses its own part")]
pub use gateway::{Gateway, TestConfig};
#[allow(unused_imports, reason = "every test binary uses its own part")]
pub use upstream::{Gate, Plan, Seen, Upstream};

/// The path of queries and their pages.
pub const QUERY: &str = "/v3/InsightsDomains/Conversations/Query";
/// The path of metadata.
pub const METADATA: &str = "/v3/InsightsDomains/Conversations/Metadata";
/// A query that is accepted.
pub const ASK: &str = r#"{"query":{"measures":["Conversation.Count"]}}"#;
/// The upstream's response where a test does not depend on it: a page of rows, and metadata without members.
pub const PAGE: &str = r#"{"data":[{"Conversation.Count":1}],"meta":{},"cubes":[]}"#;

/// The metadata of [`Upstream::with_metadata`]: the members that teams with a policy may name.
pub const MEMBERS: &str = r#"{"domain":"Conversations","cubes":[{"name":"Conversation","description":"conversations, see Conversation.ParticipantId","measures":[{"name":"Conversation.Count","type":"number","aggregation":"count"}],"dimensions":[{"name":"Conversation.ConversationStatus","type":"string","description":"how it stands"},{"name":"Conversation.ParticipantId","type":"string"},{"name":"Conversation.Queue","type":"string"},{"name":"Conversation.CreatedDate","type":"time"},{"name":"Conversation.CreatedAt","type":"time"}]},{"name":"Secret","measures":[{"name":"Secret.Count","type":"number"}],"dimensions":[]}]}"#;

/// Fails a test that hangs.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it did not finish within 20 seconds")
}

/// Asks again until there is a result. The pause only keeps the loop from using a whole core; no test depends on its
/// length.
pub async fn poll<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(15);
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(tokio::time::Instant::now() < deadline, "did not happen within 15 seconds: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A SHA-256 hash in the form of `token_sha256`.
pub fn sha256_hex(text: &str) -> String {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A POST of a query, as bytes.
pub fn post(body: &str) -> Vec<u8> {
    post_to(QUERY, "", body)
}

/// A POST with further header lines, each ended by CR LF.
pub fn post_to(target: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("POST {target} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {length}\r\n\r\n{body}").into_bytes()
}

/// A GET, as bytes, with further header lines, each ended by CR LF.
pub fn get(target: &str, headers: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").into_bytes()
}
