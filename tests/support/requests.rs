//! Requests as bytes, and the content that most tests send and get.

/// The path of queries and their pages.
pub const QUERY: &str = "/v3/InsightsDomains/Conversations/Query";
/// The path of metadata.
pub const METADATA: &str = "/v3/InsightsDomains/Conversations/Metadata";
/// A query that is accepted.
pub const ASK: &str = r#"{"query":{"measures":["Conversation.Count"]}}"#;
/// The upstream's response where a test does not depend on it: a page of rows, and metadata without members.
pub const PAGE: &str = r#"{"data":[{"Conversation.Count":1}],"meta":{},"cubes":[]}"#;

/// The metadata of [`Upstream::with_metadata`](super::Upstream::with_metadata): the members that teams with a policy may name.
pub const MEMBERS: &str = r#"{"domain":"Conversations","cubes":[{"name":"Conversation","description":"conversations, see Conversation.ParticipantId","measures":[{"name":"Conversation.Count","type":"number","aggregation":"count"}],"dimensions":[{"name":"Conversation.ConversationStatus","type":"string","description":"how it stands"},{"name":"Conversation.ParticipantId","type":"string"},{"name":"Conversation.Queue","type":"string"},{"name":"Conversation.CreatedDate","type":"time"},{"name":"Conversation.CreatedAt","type":"time"}]},{"name":"Secret","measures":[{"name":"Secret.Count","type":"number"}],"dimensions":[]}]}"#;

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
