//! The body of a response about query jobs: any bytes. Only links in it change, and only from the upstream's address to
//! the gateway's.

#![no_main]

use bytes::Bytes;
use http::Uri;
use insights_gateway::core::json::Value;
use insights_gateway::twilio::links::{Base, Links, MEMBERS};
use insights_gateway_fuzz::{choices, strict};
use libfuzzer_sys::fuzz_target;

/// Addresses of the gateway. Among these are the upstream's own address and one that resembles an API path.
const PUBLIC: [&str; 5] = [
    "http://gw",
    "https://gw.example:8443/prefix/",
    "http://up.example:4010",
    "https://insights.twilio.com",
    "http://gw/v3",
];

/// The links in a response: the range of each between its quotes, and its text.
fn links<'v>(value: &'v Value<'_>, text: &[u8]) -> Vec<(usize, usize, &'v str)> {
    let mut found = Vec::new();
    let add = |object: &'v Value<'_>, found: &mut Vec<_>| {
        for member in object.as_object().unwrap_or_default() {
            if let (true, Value::String(link)) = (MEMBERS.contains(&member.name.as_str()), &member.value) {
                let at = link.raw().as_ptr() as usize - text.as_ptr() as usize;
                found.push((at, at + link.raw().len(), link.as_str()));
            }
        }
    };
    add(value, &mut found);
    for member in value.as_object().unwrap_or_default().iter().filter(|member| member.name.as_str() == "items") {
        member.value.as_array().unwrap_or_default().iter().for_each(|item| add(item, &mut found));
    }
    found.sort_unstable();
    found
}

/// The bytes of a response without its links.
fn rest(text: &[u8], links: &[(usize, usize, &str)]) -> Vec<u8> {
    let (mut rest, mut copied) = (Vec::new(), 0);
    for (start, end, _) in links {
        rest.extend_from_slice(&text[copied..*start]);
        copied = *end;
    }
    rest.extend_from_slice(&text[copied..]);
    rest
}

/// A rewritten link names Twilio or the upstream to another reader of URLs, too, and keeps its path and all after it.
fn check(before: &str, after: &str, base: &str) {
    let kept = after.strip_prefix(base).expect("leads elsewhere");
    assert!(before.ends_with(kept) && kept.starts_with("/v3/"), "{before} became {after}");
    let url = if before.starts_with("//") { format!("http:{before}") } else { before.to_owned() };
    let url: Uri = url.parse().unwrap_or_else(|error| panic!("{before}: {error}"));
    let host = url.host().expect("a host").to_ascii_lowercase();
    let host = host.strip_suffix('.').unwrap_or(&host);
    assert!(host == "insights.twilio.com" || host == "up.example", "{before}");
    assert!(!before.contains('@') || kept.contains('@'), "{before}");
}

fuzz_target!(|text: &[u8]| {
    let value = strict::read(text);
    let answer = Bytes::copy_from_slice(text);
    let rewriter = Links::new(&Uri::from_static("http://up.example:4010"), None);
    let public = PUBLIC[choices(text, 0).usize(..PUBLIC.len())];
    let base = Base::of_url(&Uri::from_static(public));
    let Ok(out) = rewriter.rewrite(&answer, &base) else { return assert!(value.is_none()) };
    let value = value.expect("an answer is JSON");

    let again = strict::read(&out).expect("still JSON");
    let (before, after) = (links(&value, text), links(&again, &out));
    assert_eq!(rest(text, &before), rest(&out, &after), "bytes other than links have changed");
    for ((from, to, before), (new_from, new_to, after)) in before.iter().zip(&after) {
        if text[*from..*to] != out[*new_from..*new_to] {
            check(before, after, base.as_str());
        }
        let location = rewriter.rewrite_location(before, &base);
        assert_eq!(location.as_deref().unwrap_or(before), *after, "the header is rewritten differently");
    }
    assert_eq!(
        rewriter.rewrite(&out, &base).as_ref(),
        Ok(&out),
        "a link to the gateway is taken for one to the upstream"
    );
});
