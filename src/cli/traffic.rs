//! Simulated traffic of a few dashboards, so that a demo has something to show. Each dashboard is a separate HTTP
//! client with one request at a time. Together they send at most a dozen requests a second, and most are hits.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderValue, Method, Request, header};
use http_body_util::Full;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::client::{Address, Answer, Client, Limits};
use crate::core::clock::Clock;

const DOMAIN: &str = "/v3/InsightsDomains/Conversations";
const LIMITS: Limits = Limits { connect: Duration::from_secs(5), answer: Duration::from_secs(120), body: 16 << 20 };
/// The shortest and the longest pause between two queries of a dashboard, in milliseconds.
const BETWEEN: [u64; 2] = [40, 300];
/// The most result pages of one query that a dashboard reads.
const MOST_PAGES: usize = 3;

/// A dashboard: the queries of each round, and the shortest and the longest pause between two rounds, in seconds.
struct Dashboard {
    tiles: &'static [&'static str],
    pause: [u64; 2],
}

/// In a query, `@HOUR`, `@DAY` and `@MONTH` are the time an hour, a day or a month ago, to the minute, and `@SOME-DAY`
/// is a day of the last two months.
const DASHBOARDS: [Dashboard; 4] = [
    // A screen on a wall.
    Dashboard {
        tiles: &[
            r#"{"measures":["Conversation.Count"],"dimensions":["Conversation.ConversationStatus"]}"#,
            r#"{"measures":["Conversation.Count"],"dimensions":["Conversation.Channels"]}"#,
            r#"{"measures":["Conversation.Count"],"filters":[{"op":"AND","expressions":[{"op":"GT","field":"Conversation.CreatedDate","values":["@HOUR"]}]}]}"#,
        ],
        pause: [2, 4],
    },
    // Another screen. It shares a query with the first, and shows the last month.
    Dashboard {
        tiles: &[
            r#"{"dimensions":["Conversation.ConversationStatus"],"measures":["Conversation.Count"]}"#,
            r#"{"measures":["Conversation.Count","Conversation.UniqueParticipants"],"dimensions":["Conversation.CreatedDate.day"],"filters":[{"op":"AND","expressions":[{"op":"GT","field":"Conversation.CreatedDate","values":["@MONTH"]}]}]}"#,
            r#"{"measures":["ConversationSummary.AverageSentimentScore"]}"#,
        ],
        pause: [3, 8],
    },
    // A user who looks at single days, page by page.
    Dashboard {
        tiles: &[
            r#"{"measures":["Conversation.Count"],"dimensions":["Conversation.ConversationName"],"filters":[{"op":"AND","expressions":[{"op":"GT","field":"Conversation.CreatedDate","values":["@SOME-DAY"]}]}]}"#,
            r#"{"measures":["OperatorResult.Count"],"dimensions":["OperatorResult.OperatorName"]}"#,
        ],
        pause: [4, 9],
    },
    // A user who misspells a name.
    Dashboard {
        tiles: &[
            r#"{"measures":["Conversation.Count"],"dimensions":["Conversation.ParticipantType"],"filters":[{"op":"AND","expressions":[{"op":"GT","field":"Conversation.CreatedDate","values":["@DAY"]}]}]}"#,
            r#"{"measures":["Conversation.Cout"]}"#,
        ],
        pause: [10, 20],
    },
];

/// Sends queries to the gateway at `address`, for ever.
pub(super) async fn ask_for_ever(address: Address) {
    join_all(DASHBOARDS.iter().map(|dashboard| look(dashboard, address.clone()))).await;
}

async fn look(dashboard: &Dashboard, address: Address) {
    // This fails only for an unreadable file with trust roots, and there is no such file.
    let Ok(mut client) = Client::new(address, None, LIMITS) else { return };
    loop {
        ask(&mut client, request(Method::GET, &format!("{DOMAIN}/Metadata"), String::new())).await;
        for tile in dashboard.tiles {
            walk(&mut client, tile).await;
            tokio::time::sleep(Duration::from_millis(between(BETWEEN))).await;
        }
        tokio::time::sleep(Duration::from_secs(between(dashboard.pause))).await;
    }
}

/// Sends a query, and reads some of the following pages.
async fn walk(client: &mut Client, tile: &str) {
    let body = format!(r#"{{"query":{}}}"#, with_times(tile, now(), fastrand::i64(1..60)));
    let mut answer = ask(client, request(Method::POST, &format!("{DOMAIN}/Query?pageSize=50"), body)).await;
    for _ in 1..MOST_PAGES {
        let Some(token) = answer.as_ref().and_then(next) else { return };
        let path = format!("{DOMAIN}/Query?pageToken={}", percent_encoded(&token));
        answer = ask(client, request(Method::GET, &path, String::new())).await;
    }
}

fn now() -> Timestamp {
    Timestamp::try_from(Clock::new().wall_now()).unwrap_or_default()
}

/// `None` if there is no answer, because the gateway is stopping.
async fn ask(client: &mut Client, request: Option<Request<Full<Bytes>>>) -> Option<Answer> {
    client.send(request?).await.ok()
}

fn request(method: Method, path: &str, body: String) -> Option<Request<Full<Bytes>>> {
    const JSON: HeaderValue = HeaderValue::from_static("application/json");
    let request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, JSON);
    request.body(Full::from(body)).ok()
}

fn next(answer: &Answer) -> Option<String> {
    let page: Value = serde_json::from_slice(&answer.body).ok()?;
    Some(page["meta"]["nextToken"].as_str()?.to_owned())
}

fn percent_encoded(token: &str) -> String {
    let encoded = |byte: u8| match byte {
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    token.bytes().map(encoded).collect()
}

/// The query with its times filled in.
fn with_times(tile: &str, now: Timestamp, days: i64) -> String {
    let ago = |hours: i64| {
        let then = now.checked_sub(SignedDuration::from_hours(hours)).unwrap_or(now);
        then.strftime("%Y-%m-%dT%H:%M:00Z").to_string()
    };
    let some_day = ago(24 * days).split('T').next().unwrap_or_default().to_owned();
    tile.replace("@HOUR", &ago(1))
        .replace("@DAY", &ago(24))
        .replace("@MONTH", &ago(24 * 30))
        .replace("@SOME-DAY", &some_day)
}

fn between([least, most]: [u64; 2]) -> u64 {
    fastrand::u64(least..=most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tiles_are_queries() {
        let now = "2026-11-28T12:34:56Z".parse().unwrap();
        for tile in DASHBOARDS.iter().flat_map(|dashboard| dashboard.tiles) {
            let text = format!(r#"{{"query":{}}}"#, with_times(tile, now, 3));
            assert!(!text.contains('@'), "{text}");
            serde_json::from_str::<Value>(&text).unwrap();
        }
        assert_eq!(with_times("@HOUR @DAY @SOME-DAY", now, 3), "2026-11-28T11:34:00Z 2026-11-27T12:34:00Z 2026-11-25");
    }
}
