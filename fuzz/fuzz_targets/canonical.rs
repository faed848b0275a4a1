//! The body of a query: any bytes. Equal queries give equal bytes, the canonical form is a fixed point and means the
//! same, and the reader accepts nothing that another reader would understand differently.

#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use insights_gateway::core::json;
use insights_gateway::twilio::query::QueryError;
use insights_gateway::twilio::settled::{TimeDimensions, Verdict, judge};
use insights_gateway_fuzz::query::{Place, meaning, respell};
use insights_gateway_fuzz::{canonical, choices, strict};
use libfuzzer_sys::fuzz_target;

static TIMES: LazyLock<TimeDimensions> = LazyLock::new(|| {
    let metadata =
        br#"{"cubes":[{"dimensions":[{"name":"Conversation.CreatedDate","type":"time"},{"name":"D","type":"date"}]}]}"#;
    TimeDimensions::read(metadata).expect("metadata")
});

fn is_settled(body: &[u8]) -> bool {
    const NOON: i64 = 1_795_348_800;
    let now = jiff::Timestamp::from_second(NOON).expect("a time");
    judge(body, Some(&TIMES), Duration::from_secs(86_400), now) == Verdict::Settled
}

fuzz_target!(|body: &[u8]| {
    let value = strict::read(body);
    let query = match canonical(body) {
        Ok(query) => query,
        Err(QueryError::Json(..) | QueryError::TooManyValues) => return assert!(value.is_none()),
        Err(_) => return assert!(value.is_some()),
    };
    let value = value.expect("a query is JSON");

    assert_eq!(canonical(&query).as_ref(), Ok(&query), "not a fixed point");
    let again = json::parse(&query).expect("the canonical form is JSON");
    assert_eq!(meaning(&again, Place::Body), meaning(&value, Place::Body), "another query");
    assert_eq!(is_settled(&query), is_settled(body), "another verdict");

    for salt in 0..2 {
        let mut spelled = Vec::new();
        respell(&value, Place::Body, &mut choices(body, salt), &mut spelled);
        let other = canonical(&spelled);
        assert_eq!(
            other.as_ref(),
            Ok(&query),
            "equal queries with different forms: {}",
            String::from_utf8_lossy(&spelled)
        );
    }
});
