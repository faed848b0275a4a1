//! The queries and the responses.

use std::fmt::Write;

/// The path of queries.
pub const PATH: &str = "/v3/InsightsDomains/Conversations/Query";

/// The path of metadata.
pub const METADATA_PATH: &str = "/v3/InsightsDomains/Conversations/Metadata";

/// The members that queries name, and one more.
pub const METADATA: &str = r#"{"domain":"Conversations","cubes":[{"name":"Conversation","measures":[{"name":"Conversation.Count","type":"number"},{"name":"Conversation.AvgHandleTime","type":"number"}],"dimensions":[{"name":"Conversation.ConversationStatus","type":"string"},{"name":"Conversation.ConversationName","type":"string"},{"name":"Conversation.ParticipantId","type":"string"},{"name":"Conversation.CreatedDate","type":"time"}]}]}"#;

/// Decimal digits of a query's number.
const DIGITS: usize = 10;

/// A whole request whose query number is changed in place, so that sending needs no allocation and no formatting.
#[derive(Debug)]
pub struct Request {
    bytes: Vec<u8>,
    number: usize,
}

impl Request {
    /// A request to `port` on this machine, by the team with this token.
    pub fn new(port: u16, token: Option<&str>) -> Self {
        let zeros = "0".repeat(DIGITS);
        // In the spelling of client libraries, which is neither sorted nor otherwise in the gateway's canonical form.
        let body = format!(
            r#"{{"domain":"Conversations","query":{{"measures":["Conversation.Count","Conversation.AvgHandleTime"],"dimensions":["Conversation.ConversationStatus"],"filters":[{{"op":"AND","expressions":[{{"op":"GT","field":"Conversation.CreatedDate","values":["2026-04-02"]}},{{"op":"EQ","field":"Conversation.ParticipantId","values":["MB{filler}{zeros}"]}}]}}],"orderBy":[{{"field":"Conversation.Count","direction":"DESC"}}]}},"pageSize":50}}"#,
            filler = "5d7a3c9e10b24f68a0c1d2",
        );
        let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let head = format!(
            "POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: application/json\r\n{authorization}\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let in_body = body.find(&zeros).unwrap_or_default();
        Self { number: head.len() + in_body, bytes: (head + &body).into_bytes() }
    }

    /// The request for query `number`.
    pub fn numbered(&mut self, number: u64) -> &[u8] {
        let mut rest = number;
        for digit in self.bytes[self.number..self.number + DIGITS].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        &self.bytes
    }
}

/// One long sequence of draws from `keys` queries, where the n-th has a weight of 1/n. It is always the same.
pub fn zipf(keys: u32) -> Vec<u32> {
    const DRAWS: usize = 1 << 18;
    let weights = (1..=keys).scan(0.0, |sum, n| {
        *sum += 1.0 / f64::from(n);
        Some(*sum)
    });
    let sums: Vec<f64> = weights.collect();
    let total = sums.last().copied().unwrap_or_default();
    let mut random = fastrand::Rng::with_seed(1);
    let draw = |_| (sums.partition_point(|sum| *sum < random.f64() * total) as u32).min(keys - 1);
    (0..DRAWS).map(draw).collect()
}

/// A response of exactly `size` bytes in Twilio's format.
pub fn answer(size: usize) -> Vec<u8> {
    const END: &str = "]}";
    let mut page = String::from(r#"{"meta":{"key":"data","page_size":50,"next_token":null},"data":["#);
    for row in 0_u32.. {
        let before = page.len();
        let comma = if row == 0 { "" } else { "," };
        let count = row.wrapping_mul(2_654_435_761) % 10_000;
        // Writing to a String cannot fail.
        let _ = write!(
            page,
            r#"{comma}{{"Conversation.ConversationStatus":"CLOSED","Conversation.Count":{count},"Conversation.AvgHandleTime":{count}.25}}"#
        );
        if page.len() + END.len() > size {
            page.truncate(before);
            break;
        }
    }
    page.push_str(END);
    // White space after the value keeps it JSON.
    let mut page = page.into_bytes();
    page.resize(size, b' ');
    page
}
