use std::sync::Mutex;

use http::HeaderMap;
use tower::{ServiceExt, service_fn};

use super::*;
use crate::twilio::endpoint::Operation;

const TWILIO: &str = "https://twilio.example";

fn account(sid: &str) -> Account {
    Account { name: "main".into(), sid: sid.to_owned(), origin: String::new() }
}

fn credentials(sid: &str, upstream: &'static str, secret: &str) -> Credentials {
    let mut credentials = Credentials::default();
    credentials.insert(&account(sid), &Uri::from_static(upstream), "SK1", &secret.into());
    credentials
}

/// One call through a layer made of `own`, while `newest` is the newest: the secret that it was signed with, and how
/// it ended.
async fn sent(
    own: &Credentials,
    newest: &Newest,
    rejections: &Rejections,
    answer: impl Fn() -> (u16, &'static str),
) -> (String, Result<UpstreamResponse, GatewayError>) {
    let seen = Mutex::default();
    let inner = service_fn(|signed: SignedCall| {
        assert!(signed.authorization.is_sensitive() && !format!("{signed:?}").contains("Basic"));
        let basic = signed.authorization.to_str().unwrap().strip_prefix("Basic ").unwrap().to_owned();
        *seen.lock().unwrap() = String::from_utf8(BASE64_STANDARD.decode(basic).unwrap()).unwrap();
        let (status, body) = answer();
        let status = StatusCode::from_u16(status).unwrap();
        let headers = HeaderMap::new();
        std::future::ready(Ok(UpstreamResponse { status, headers, body: body.into(), next_token: None }))
    });
    let clock = Clock::new();
    let layer = SignLayer::new(own.clone(), newest.clone(), rejections.clone(), Metrics::new(), clock);
    let result = layer.layer(inner).oneshot(UpstreamCall::example(Operation::Metadata, "", "")).await;
    let pair: String = seen.lock().unwrap().clone();
    (pair.strip_prefix("SK1:").unwrap().to_owned(), result)
}

#[tokio::test]
async fn a_call_from_before_a_reload_is_signed_with_the_newest_secret_of_its_own_account_and_upstream() {
    let own = credentials("AC1", TWILIO, "the-old-one");
    let cases = [
        (Credentials::default(), "the-old-one"),
        (credentials("AC1", TWILIO, "the-new-one"), "the-new-one"),
        (credentials("AC2", TWILIO, "somebody-elses"), "the-old-one"),
        (credentials("AC1", "https://elsewhere.example", "of-elsewhere"), "the-old-one"),
    ];
    for (newest, expected) in cases {
        let shared = Newest::default();
        shared.set(newest);
        let (secret, result) = sent(&own, &shared, &Rejections::default(), || (200, "{}")).await;
        assert_eq!((secret.as_str(), result.is_ok()), (expected, true));
    }
}

#[tokio::test]
async fn a_rejection_of_a_secret_that_was_replaced_meanwhile_is_tried_again_and_not_remembered() {
    let (old, new) = (credentials("AC1", TWILIO, "the-old-one"), credentials("AC1", TWILIO, "the-new-one"));
    let (newest, rejections) = (Newest::default(), Rejections::default());
    newest.set(old.clone());
    let replaced = || {
        newest.set(new.clone());
        (401, "{}")
    };
    let (secret, result) = sent(&old, &newest, &rejections, replaced).await;
    let error = result.unwrap_err();
    assert_eq!((secret.as_str(), error.retry()), ("the-old-one", Retry::NothingSent));
    assert!(rejections.since("main").is_none());
    let (secret, result) = sent(&old, &newest, &rejections, || (401, "{}")).await;
    let error = result.unwrap_err();
    assert_eq!((secret.as_str(), error.retry()), ("the-new-one", Retry::Never));
    assert_eq!(error.reason(), Reason::UpstreamRejectedCredentials);
    assert!(rejections.since("main").is_some());
}

#[tokio::test]
async fn an_answer_that_repeats_the_secret_goes_no_further() {
    let own = credentials("AC1", TWILIO, "the-only-one");
    for status in [200, 400, 404, 500, 503] {
        let answer = move || (status, "{\"message\":\"bad password: the-only-one\"}");
        let (_, result) = sent(&own, &Newest::default(), &Rejections::default(), answer).await;
        let error = result.unwrap_err();
        assert_eq!((error.reason(), error.retry()), (Reason::UpstreamInvalid, Retry::Never), "{status}");
        assert!(!error.message().contains("the-only-one"));
    }
}

#[tokio::test]
async fn a_429_that_repeats_the_secret_stays_one_without_it() {
    let own = credentials("AC1", TWILIO, "the-only-one");
    let answer = || (429, "{\"message\":\"bad password: the-only-one\"}");
    let (_, result) = sent(&own, &Newest::default(), &Rejections::default(), answer).await;
    let answer = result.unwrap();
    let body = String::from_utf8(answer.body.to_vec()).unwrap();
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(body.contains("upstream_rate_limit") && !body.contains("the-only-one"), "{body}");
}

#[tokio::test]
async fn an_answer_that_repeats_another_secret_of_the_gateways_goes_no_further() {
    let mut newest = credentials("AC1", TWILIO, "the-newest-one");
    let other = Account { name: "other".into(), ..account("AC2") };
    newest.insert(&other, &Uri::from_static(TWILIO), "SK2", &"of-another-account".into());
    newest.insert_proxy(
        &HeaderValue::from_str(&format!("Basic {}", BASE64_STANDARD.encode("p:password-of-a-proxy"))).unwrap(),
    );
    let shared = Newest::default();
    shared.set(credentials("AC1", TWILIO, "the-replaced-one"));
    shared.set(newest.clone());
    for (body, is_withheld) in [
        ("\"the-newest-one\"", true),
        ("\"of-another-account\"", true),
        ("\"the-replaced-one\"", true),
        ("\"password-of-a-proxy\"", true),
        ("\"of-nobody-in-particular\"", false),
    ] {
        let (_, result) = sent(&newest, &shared, &Rejections::default(), move || (200, body)).await;
        assert_eq!(result.is_err(), is_withheld, "{body}");
    }
    for n in 0..9 {
        shared.set(credentials("AC1", TWILIO, &format!("secret-number-{n}")));
    }
    let (_, result) = sent(&newest, &shared, &Rejections::default(), || (200, "\"the-replaced-one\"")).await;
    assert!(result.is_ok(), "they are not remembered without end");
}
