use std::sync::Mutex;

use http::HeaderMap;
use tower::{ServiceExt, service_fn};

use super::*;
use crate::accounts::Team;
use crate::twilio::endpoint::Operation;

const TWILIO: &str = "https://twilio.example";

/// What configurations make of the account `main`.
#[derive(Default)]
struct Configurations(Credentials);

impl Configurations {
    /// A configuration with this SID, upstream and secret is put into use.
    fn set(&mut self, sid: &str, upstream: &'static str, secret: &str) -> Signer {
        let account = Account { sid: sid.to_owned(), ..(*Team::example("local").account).clone() };
        let login = Login { account: &account, username: "SK1", secret: &secret.into() };
        let credential = self.0.set(&[login], &Uri::from_static(upstream), None).remove(0).credential;
        Signer { credential, rejection: Rejection::default(), echoes: Episode::default() }
    }
}

/// One call through a layer with this signer: the secret that it was signed with, and how it ended.
async fn sent(
    signer: &Signer,
    secrets: Secrets,
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
    let layer = SignLayer::new(PerAccount::example(signer.clone()), secrets, Metrics::new(), clock);
    let result = layer.layer(inner).oneshot(UpstreamCall::example(Operation::Metadata, "", "")).await;
    let pair: String = seen.lock().unwrap().clone();
    (pair.strip_prefix("SK1:").unwrap().to_owned(), result)
}

#[tokio::test]
async fn a_call_from_before_a_reload_is_signed_with_the_newest_secret_of_its_own_account_and_upstream() {
    let cases = [
        ("AC1", TWILIO, "the-new-one", "the-new-one"),
        ("AC2", TWILIO, "somebody-elses", "the-old-one"),
        ("AC1", "https://elsewhere.example", "of-elsewhere", "the-old-one"),
    ];
    for (sid, upstream, secret, expected) in cases {
        let mut configured = Configurations::default();
        let old = configured.set("AC1", TWILIO, "the-old-one");
        let new = configured.set(sid, upstream, secret);
        let secrets = || configured.0.secrets();
        let (signed_with, result) = sent(&old, secrets(), || (200, "{}")).await;
        assert_eq!((signed_with.as_str(), result.is_ok()), (expected, true));
        assert_eq!(sent(&new, secrets(), || (200, "{}")).await.0, secret);
        // An account that goes elsewhere and comes back is the same again.
        let _back = configured.set("AC1", TWILIO, "the-newest-one");
        assert_eq!(sent(&old, configured.0.secrets(), || (200, "{}")).await.0, "the-newest-one");
    }
}

#[test]
fn accounts_of_one_sid_sign_with_their_own_keys() {
    let mut credentials = Credentials::default();
    let account = |name: &str| Account { name: name.into(), ..(*Team::example("local").account).clone() };
    let (one, other) = (account("one"), account("other"));
    let (first, second) = ("of-one-key".into(), "of-the-other-key".into());
    let logins = [
        Login { account: &one, username: "SK1", secret: &first },
        Login { account: &other, username: "SK2", secret: &second },
    ];
    let signers = credentials.set(&logins, &Uri::from_static(TWILIO), None);
    let authorization = |signer: &Configured| signer.credential.signature().authorization.clone();
    assert_ne!(authorization(&signers[0]), authorization(&signers[1]));
}

#[test]
fn credentials_that_nobody_can_sign_with_are_wiped() {
    let mut configured = Configurations::default();
    let old = configured.set("AC1", TWILIO, "the-old-one");
    let signature = Arc::downgrade(&old.credential.signature());
    let new = configured.set("AC1", TWILIO, "the-new-one");
    assert!(signature.upgrade().is_none(), "replaced");
    let signature = Arc::downgrade(&new.credential.signature());
    let _other = configured.set("AC2", TWILIO, "somebody-elses");
    assert!(signature.upgrade().is_some(), "calls under way may still need it");
    drop((old, new));
    assert!(signature.upgrade().is_none(), "of no stack any more");
}

#[tokio::test]
async fn a_rejection_of_a_secret_that_was_replaced_meanwhile_is_tried_again_and_not_remembered() {
    let mut configured = Configurations::default();
    let old = configured.set("AC1", TWILIO, "the-old-one");
    let secrets = configured.0.secrets();
    let configured = Mutex::new(configured);
    let replaced = || {
        let _new = configured.lock().unwrap().set("AC1", TWILIO, "the-new-one");
        (401, "{}")
    };
    let (secret, result) = sent(&old, secrets.clone(), replaced).await;
    let error = result.unwrap_err();
    assert_eq!((secret.as_str(), error.retry()), ("the-old-one", Retry::NothingSent));
    assert!(old.rejection.since().is_none());
    let (secret, result) = sent(&old, secrets.clone(), || (403, "{}")).await;
    let error = result.unwrap_err();
    assert_eq!((secret.as_str(), error.retry()), ("the-new-one", Retry::Never));
    assert_eq!(error.reason(), Reason::UpstreamRejectedCredentials);
    assert_eq!(error.upstream_cause().map(ToString::to_string).as_deref(), Some("status: 403"));
    assert!(old.rejection.since().is_some());
    assert_eq!(old.rejection.status(), 403);
    let (_, result) = sent(&old, secrets, || (200, "{}")).await;
    assert!(result.is_ok() && old.rejection.since().is_none());
}

#[tokio::test]
async fn an_answer_that_repeats_the_secret_goes_no_further() {
    // Even one that no configuration has any more.
    let signer = Configurations::default().set("AC1", TWILIO, "the-only-one");
    for status in [200, 400, 404, 500, 503] {
        let answer = move || (status, "{\"message\":\"bad password: the-only-one\"}");
        let (_, result) = sent(&signer, Secrets::default(), answer).await;
        let error = result.unwrap_err();
        assert_eq!((error.reason(), error.retry()), (Reason::UpstreamInvalid, Retry::Never), "{status}");
        assert!(!error.message().contains("the-only-one"));
    }
}

#[tokio::test]
async fn a_429_that_repeats_the_secret_stays_one_without_it() {
    let signer = Configurations::default().set("AC1", TWILIO, "the-only-one");
    let answer = || (429, "{\"message\":\"bad password: the-only-one\"}");
    let (_, result) = sent(&signer, Secrets::default(), answer).await;
    let answer = result.unwrap();
    let body = String::from_utf8(answer.body.to_vec()).unwrap();
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(body.contains("upstream_rate_limit") && !body.contains("the-only-one"), "{body}");
}

#[tokio::test]
async fn an_answer_that_repeats_another_secret_of_the_gateways_goes_no_further() {
    let mut configured = Configurations::default();
    let signer = configured.set("AC1", TWILIO, "the-replaced-one");
    let secrets = configured.0.secrets();
    let example = Team::example("local").account;
    let other = Account { name: "other".into(), ..(*example).clone() };
    let (newest, of_another) = ("the-newest-one".into(), "of-another-account".into());
    let logins = [
        Login { account: &example, username: "SK1", secret: &newest },
        Login { account: &other, username: "SK2", secret: &of_another },
    ];
    let proxy = format!("Basic {}", BASE64_STANDARD.encode("p:password-of-a-proxy"));
    configured.0.set(&logins, &Uri::from_static(TWILIO), Some(&HeaderValue::from_str(&proxy).unwrap()));
    for (body, is_withheld) in [
        ("\"the-newest-one\"", true),
        ("\"of-another-account\"", true),
        ("\"the-replaced-one\"", true),
        ("\"password-of-a-proxy\"", true),
        ("\"of-nobody-in-particular\"", false),
    ] {
        let (_, result) = sent(&signer, secrets.clone(), move || (200, body)).await;
        assert_eq!(result.is_err(), is_withheld, "{body}");
    }
    for n in 0..9 {
        configured.set("AC1", TWILIO, &format!("secret-number-{n}"));
    }
    let (_, result) = sent(&signer, secrets, || (200, "\"the-replaced-one\"")).await;
    assert!(result.is_ok(), "they are not remembered without end");
}
