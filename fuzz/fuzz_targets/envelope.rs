//! The body of an upstream's response: any bytes. It is read as JSON where serde_json reads it as JSON, and the same
//! next page is found in it.

#![no_main]

use insights_gateway::twilio::page::Envelope;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|body: &[u8]| {
    let theirs = serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok() && std::str::from_utf8(body).is_ok();
    let ours = Envelope::read(body);
    assert_eq!(ours.is_some(), theirs, "only one of two readers accepts it");
    let Some(token) = ours.and_then(|envelope| envelope.next_token) else { return };
    // serde_json keeps the last of several members with one name, which a response with a token does not have, and
    // refuses numbers beyond f64.
    if let Ok(value) = serde_json::from_slice::<Value>(body) {
        let meta = value.get("meta").or_else(|| value.get(0));
        let next = meta.and_then(|meta| meta.get("nextToken").or_else(|| meta.get(0)));
        assert_eq!(next.and_then(Value::as_str), Some(&*token), "another page");
    }
});
