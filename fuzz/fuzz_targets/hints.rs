//! The headers that the gateway reads, a client's and an upstream's: lines of `name: value`. No value makes it wait or
//! store for longer than its limits, or store what must not be stored.

#![no_main]

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use insights_gateway::core::request_id;
use insights_gateway::request::call::UpstreamResponse;
use insights_gateway::request::response::Representation;
use insights_gateway::semantics::cache_control::{Storage, normalise};
use insights_gateway::semantics::freshness::{Decision, Lifetimes, decide};
use insights_gateway::semantics::request_directives::{RequestDirectives, has_tag};
use insights_gateway::semantics::upstream_headers::{RateLimitHeaders, pause};
use insights_gateway_fuzz::choices;
use libfuzzer_sys::fuzz_target;

const YEAR: Duration = Duration::from_secs(366 * 86_400);

fn headers(text: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in text.split(|byte| *byte == b'\n') {
        let at = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let value = line.get(at + 1..).unwrap_or_default();
        let value = HeaderValue::from_bytes(value.strip_prefix(b" ").unwrap_or(value));
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(&line[..at]), value) {
            headers.append(name, value);
        }
    }
    headers
}

fn has_word(headers: &HeaderMap, name: HeaderName, word: &str) -> bool {
    let lines = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|part| part.trim().eq_ignore_ascii_case(word))
}

fn has_quotes(headers: &HeaderMap) -> bool {
    headers.get_all(header::CACHE_CONTROL).into_iter().any(|line| line.as_bytes().contains(&b'"'))
}

fn check_upstream(headers: &HeaderMap) {
    // 2026-11-22, the day around which the seeds' dates are.
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_348_800);
    if let Some(pause) = pause(headers, now) {
        assert!(!pause.is_zero() && pause <= YEAR, "{pause:?}");
    }
    assert!(RateLimitHeaders::read(headers).reset.is_none_or(|reset| !reset.is_zero() && reset <= YEAR));
    let storage = Storage::read(headers, now);
    for word in ["no-store", "private", "no-cache"] {
        // A word within quotes is not a directive, and quotes that are not closed forbid storing as well.
        let is_said = has_word(headers, header::CACHE_CONTROL, word) && !has_quotes(headers);
        assert!(storage.forbidden || !is_said, "{word}");
    }
    let mut headers = headers.clone();
    normalise(&mut headers, now);
    let again = Storage::read(&headers, now);
    let day = Lifetimes::fresh_only(Duration::from_secs(86_400));
    assert_eq!(again.narrow(day), storage.narrow(day));

    for status in [StatusCode::OK, StatusCode::TOO_MANY_REQUESTS] {
        let body = headers.get("body").map(|body| body.as_bytes().repeat(64)).unwrap_or_default().into();
        let page =
            Representation::new(UpstreamResponse { status, headers: headers.clone(), body, next_token: None }, &[]);
        for (name, value) in &page.headers {
            let name = name.as_str();
            let may_cross = matches!(name, "content-type" | "cache-control" | "twilio-request-id")
                || status != StatusCode::OK && (name == "retry-after" || name.starts_with("x-rate"));
            assert!(may_cross, "{name} of a {status}");
            // The upstream's own, or, where it names no JSON type, the type that all bodies have.
            let is_json = name == "content-type" && *value == "application/json";
            assert!(is_json || headers.get(name) == Some(value), "{name}: {value:?}");
        }
        assert_eq!(page.headers.iter().filter(|(name, _)| *name == header::CONTENT_TYPE).count(), 1);
        assert_eq!(page.etag.is_some(), status == StatusCode::OK);
        assert!(page.weight() >= page.body.len());
        if let Some(coded) = page.gzip() {
            assert!(coded.body.len() < page.body.len() && Some(&coded.etag) != page.etag.as_ref());
        }
    }
}

fn check_client(headers: &HeaderMap, rng: &mut fastrand::Rng) {
    let directives = RequestDirectives::read(headers);
    assert!(directives.urgency.level() <= 7);
    let longest = Duration::from_secs(u32::MAX.into());
    assert!(directives.wait.is_none_or(|wait| wait <= longest));
    for (word, is_wished) in [
        ("no-cache", directives.cache.no_cache),
        ("no-store", directives.cache.no_store),
        ("only-if-cached", directives.cache.only_if_cached),
    ] {
        let is_said = has_word(headers, header::CACHE_CONTROL, word) && !has_quotes(headers);
        assert!(is_wished || !is_said, "{word}");
    }
    if let Some(list) = &directives.if_none_match {
        let text = String::from_utf8_lossy(list.as_bytes());
        // Comparing with a known text would tell the fuzzer that text.
        let is_listed = text.split(',').any(|tag| tag.trim() == "*") || text.contains("nobody's");
        assert!(is_listed || !has_tag(list, "\"nobody's\""), "{text}");
        // A tag that is the only one in the list must be found.
        if let Ok(tag) = list.to_str()
            && tag.len() > 2
            && tag.starts_with('"')
            && tag.ends_with('"')
            && !tag.contains(',')
        {
            assert!(has_tag(list, tag) && has_tag(list, &format!("W/{tag}")));
        }
    }

    let mut seconds = || Duration::from_secs([0, 1, 60, 3600, 86_400, u64::MAX][rng.usize(..6)]);
    let lifetimes = Lifetimes { fresh: seconds(), stale_while_revalidate: seconds(), stale_if_error: seconds() };
    let age = seconds();
    let decision = decide(Some((&lifetimes, age)), &directives.cache);
    let is_served = matches!(decision, Decision::Serve | Decision::ServeAndRefresh);
    assert!(age <= lifetimes.usable() || matches!(decision, Decision::Fetch | Decision::Refuse));
    assert!(!directives.cache.only_if_cached || matches!(decision, Decision::Serve | Decision::Refuse));
    assert!(!is_served || directives.cache.max_age.is_none_or(|most| age <= most));
    assert!(!is_served || !directives.cache.no_cache);
    let _ = (lifetimes.ttl(age), lifetimes.after(age), lifetimes.at_most(age));

    let id = request_id::of(headers);
    assert!((1..=128).contains(&id.len()) && id.to_str().is_ok_and(|id| !id.contains([' ', '"', ','])));
}

fuzz_target!(|text: &[u8]| {
    let headers = headers(text);
    check_upstream(&headers);
    check_client(&headers, &mut choices(text, 0));
});
