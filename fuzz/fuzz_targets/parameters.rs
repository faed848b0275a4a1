//! The first line of a request: `METHOD path?query`. Only Twilio's own paths are found; a query string has one spelling
//! with the same meaning; the token of a response gives the request for its page.

#![no_main]

use http::Method;
use http::uri::PathAndQuery;
use insights_gateway::semantics::host::is_address_or_loopback;
use insights_gateway::twilio::endpoint::{Operation, Route, route};
use insights_gateway::twilio::parameters::{BadParameters, PAGE_SIZE, PAGE_TOKEN, Parameters};
use insights_gateway_fuzz::choices;
use libfuzzer_sys::fuzz_target;

type Pair = (Vec<u8>, Option<Vec<u8>>);

/// The pairs of a query string, decoded. Pairs with one name keep their order. Token and size of a page have their
/// documented names, and are given once where they are repeated with the same value.
fn pairs(query: &str) -> Option<Vec<Pair>> {
    let mut pairs = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.find('=').map_or((pair, None), |at| (&pair[..at], Some(&pair[at + 1..])));
        pairs.push((
            decode(name)?,
            match value {
                Some(value) => Some(decode(value)?),
                None => None,
            },
        ));
    }
    for (name, _) in &mut pairs {
        match name.as_slice() {
            b"PageToken" => *name = b"pageToken".to_vec(),
            b"PageSize" => *name = b"pageSize".to_vec(),
            _ => {}
        }
    }
    pairs.sort_by(|a, b| a.0.cmp(&b.0));
    pairs.dedup_by(|again, first| again == first && matches!(first.0.as_slice(), b"pageToken" | b"pageSize"));
    Some(pairs)
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        if *first == b'%' {
            let digits = behind.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
            out.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = &behind[2..];
        } else {
            out.push(*first);
            rest = behind;
        }
    }
    Some(out)
}

/// The pairs in another order of names, in other spellings, and with empty pairs between them.
fn respell(pairs: &[Pair], rng: &mut fastrand::Rng) -> String {
    let mut groups: Vec<&[Pair]> = pairs.chunk_by(|a, b| a.0 == b.0).collect();
    rng.shuffle(&mut groups);
    let mut out = String::new();
    for (name, value) in groups.into_iter().flatten() {
        out.push_str(["&", "&&"][rng.usize(..2)]);
        encode(name, rng, &mut out);
        if let Some(value) = value {
            out.push('=');
            encode(value, rng, &mut out);
        }
    }
    out
}

fn encode(bytes: &[u8], rng: &mut fastrand::Rng, out: &mut String) {
    for byte in bytes {
        let may_be_plain = byte.is_ascii_alphanumeric() || b"-._~+/".contains(byte);
        match (may_be_plain && rng.u8(..4) > 0, rng.bool()) {
            (true, _) => out.push(char::from(*byte)),
            (false, true) => out.push_str(&format!("%{byte:02X}")),
            (false, false) => out.push_str(&format!("%{byte:02x}")),
        }
    }
}

/// What a request asks for, as the documentation of the API has it.
fn expected(method: &Method, path: &str) -> Option<Operation> {
    let is_id = |id: &str| {
        (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
    };
    let method = if *method == Method::HEAD { "GET" } else { method.as_str() };
    if let Some(rest) = path.strip_prefix("/v3/InsightsDomains/Conversations/") {
        return match (method, rest, rest.strip_prefix("QueryJobs/")) {
            ("GET", "Metadata", _) => Some(Operation::Metadata),
            ("GET", "Query", _) => Some(Operation::Page),
            ("POST", "Query", _) => Some(Operation::Query),
            ("GET", "QueryJobs", _) => Some(Operation::JobList),
            ("POST", "QueryJobs", _) => Some(Operation::JobSubmit),
            ("GET", _, Some(job)) => match job.strip_suffix("/Results") {
                Some(id) => is_id(id).then_some(Operation::JobResults),
                None => is_id(job).then_some(Operation::JobStatus),
            },
            _ => None,
        };
    }
    let rest = path.strip_prefix("/v3/ControlPlane/ConversationInsights/CustomFieldMappings")?;
    match (method, rest, rest.strip_prefix('/')) {
        ("GET", "" | "Capacity", _) => Some(Operation::FieldsRead),
        ("POST", "", _) => Some(Operation::FieldsWrite),
        ("GET", _, Some(id)) => is_id(id).then_some(Operation::FieldsRead),
        ("PATCH", _, Some(id)) => (is_id(id) && id != "Capacity").then_some(Operation::FieldsWrite),
        _ => None,
    }
}

fn check_route(method: &[u8], path: &str) {
    let Ok(method) = Method::from_bytes(method) else { return };
    let found = match route(&method, path) {
        Route::Found(endpoint) => Some(endpoint.operation),
        Route::MethodNotAllowed(allow) => {
            assert!(!allow.split(", ").any(|allowed| allowed == method.as_str()), "{method} is allowed");
            None
        }
        Route::Usage => {
            assert!(path == "/_gateway/usage" && (method == Method::GET || method == Method::HEAD), "{method} {path}");
            None
        }
        Route::NotFound => None,
    };
    assert_eq!(found, expected(&method, path), "{method} {path}");
}

fn check_query(query: &str, rng: &mut fastrand::Rng) {
    let tokens = |pairs: &[Pair]| pairs.iter().filter(|(name, _)| name == b"pageToken").count();
    let (parameters, pairs) = match (Parameters::parse(query), pairs(query)) {
        (Ok(parameters), Some(pairs)) if tokens(&pairs) <= 1 => (parameters, pairs),
        (Err(BadParameters::TwoPageTokens), Some(pairs)) if tokens(&pairs) > 1 => return,
        // Where both are wrong, either may be reported.
        (Err(_), None) => return,
        (parsed, _) => panic!("half an encoding, or two pages: {parsed:?}"),
    };
    let canonical = parameters.as_str();
    assert_eq!(Parameters::parse(canonical).as_ref(), Ok(&parameters), "not a fixed point");
    assert_eq!(self::pairs(canonical).as_ref(), Some(&pairs), "other parameters");
    assert!(canonical.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%&=".contains(&b)), "{canonical}");
    if canonical.len() < 60_000 {
        assert!(PathAndQuery::try_from(format!("/v3?{canonical}")).is_ok(), "{canonical}");
    }
    let spelled = respell(&pairs, rng);
    assert_eq!(Parameters::parse(&spelled).as_ref(), Ok(&parameters), "another spelling: {spelled}");

    let token = pairs.iter().find(|(name, _)| name == b"pageToken").and_then(|(_, value)| value.as_deref());
    let token = token.filter(|value| !value.is_empty());
    assert_eq!(parameters.has_page_token(), token.is_some());
    if let Some(Ok(token)) = token.map(std::str::from_utf8) {
        let alone = parameters.without_all_but_page_token();
        assert_eq!(alone.is_none(), pairs.len() == 1);
        assert_eq!(Parameters::of_page(token), alone.unwrap_or_else(|| parameters.clone()), "the token of an answer");
    }
    for names in [&[][..], &[PAGE_SIZE], &[PAGE_TOKEN, PAGE_SIZE]] {
        if parameters.are_at_most(names) {
            assert!(pairs.len() <= names.len());
            for (name, value) in &pairs {
                assert!(names.iter().any(|known| known.as_bytes() == name));
                let is_size =
                    || value.as_ref().is_some_and(|value| !value.is_empty() && value.iter().all(u8::is_ascii_digit));
                assert!(name != b"pageSize" || is_size());
            }
        }
    }
}

fuzz_target!(|line: &[u8]| {
    let at = line.iter().position(|byte| *byte == b' ').unwrap_or(0);
    let Ok(target) = std::str::from_utf8(line.get(at + 1..).unwrap_or_default()) else { return };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    check_route(&line[..at], path);
    check_query(query, &mut choices(line, 0));
    if is_address_or_loopback(path) {
        let plain = path.trim_matches(['[', ']']).to_ascii_lowercase();
        assert!(plain.ends_with("localhost") || plain.parse::<std::net::IpAddr>().is_ok(), "{path}");
    }
});
