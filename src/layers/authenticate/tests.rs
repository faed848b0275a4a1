use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use tokio::time::advance;
use tower::{ServiceExt, service_fn};

use super::*;
use crate::core::clock::Instant;
use crate::core::units::Rate;
use crate::twilio::permission::{OperationSet, Permission};

const S: Duration = Duration::from_secs(1);
const METADATA: &str = "/v3/InsightsDomains/Conversations/Metadata";
const QUERY: &str = "/v3/InsightsDomains/Conversations/Query";

fn sha256(token: &str) -> [u8; 32] {
    digest(&SHA256, token.as_bytes()).as_ref().try_into().unwrap()
}

fn caller(name: &str, tokens: &[&str]) -> Caller {
    let tokens = tokens.iter().map(|token| AcceptedToken { sha256: sha256(token), expires: None }).collect();
    Caller { team: Arc::new(Team::example(name)), tokens, requests: None }
}

fn layer(callers: Callers) -> AuthenticateLayer {
    layer_of(callers, Clock::new())
}

fn layer_of(callers: Callers, clock: Clock) -> AuthenticateLayer {
    let origins = [Origin::parse("https://listed.example").unwrap()];
    let links = Links::new(&http::Uri::from_static("http://up"), None);
    AuthenticateLayer::new(callers, &origins, true, &|_| None, AuthFailureDelay::new(8), links, clock)
}

fn request(path: &str) -> http::request::Builder {
    Request::builder().uri(path).header(header::HOST, "127.0.0.1:8080")
}

/// The team that is let in, or why nobody is.
async fn authorize(layer: &AuthenticateLayer, request: http::request::Builder) -> Result<String, Reason> {
    admit_peer(layer, Peer::default(), request).await
}

async fn admit_peer(layer: &AuthenticateLayer, peer: Peer, request: http::request::Builder) -> Result<String, Reason> {
    let incoming = IncomingRequest {
        request: Box::new(request.body(Empty::<Bytes>::new()).unwrap()),
        peer: Arc::new(peer),
        received: Instant::now(),
        context: Arc::default(),
    };
    let inner = service_fn(|authorized: AuthorizedRequest<_>| {
        let name = authorized.team.name.to_string();
        std::future::ready(Ok(Response::new(ResponseBody::full(name))))
    });
    let response = layer.layer(inner).oneshot(incoming).await.map_err(|error: GatewayError| error.reason())?;
    let name = response.into_body().collect().await.unwrap().to_bytes();
    Ok(String::from_utf8(name.to_vec()).unwrap())
}

fn everybody() -> AuthenticateLayer {
    layer(Callers::Everybody(caller("local", &[]), Some(vec!["gw.internal".into()])))
}

fn teams() -> AuthenticateLayer {
    layer(Callers::Teams(vec![caller("a", &["token-1", "token-2"]), caller("b", &["token-3"])]))
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

#[tokio::test]
async fn without_teams_everybody_is_local() {
    assert_eq!(authorize(&everybody(), request(METADATA)).await.unwrap(), "local");
    let with_credentials = request(METADATA).header(header::AUTHORIZATION, basic("SKx", "whatever"));
    assert_eq!(authorize(&everybody(), with_credentials).await.unwrap(), "local");
}

#[tokio::test]
async fn a_name_that_is_not_ours_is_refused_without_teams() {
    let named = |host: &str| Request::builder().uri(METADATA).header(header::HOST, host);
    for host in
        ["localhost", "localhost:8080", "gateway.localhost", "127.0.0.1:1", "[::1]:8080", "10.0.0.1", "GW.internal:80"]
    {
        assert!(authorize(&everybody(), named(host)).await.is_ok(), "{host}");
    }
    for host in ["evil.example", "localhost.evil.example", "", "a b", "127.0.0.1.evil.example"] {
        assert_eq!(authorize(&everybody(), named(host)).await, Err(Reason::BadRequest), "{host}");
    }
    assert_eq!(authorize(&everybody(), Request::builder().uri(METADATA)).await, Err(Reason::BadRequest));
    assert_eq!(
        authorize(&everybody(), named("localhost").header(header::HOST, "localhost")).await,
        Err(Reason::BadRequest)
    );
    let token = request(METADATA).header(header::AUTHORIZATION, "Bearer token-1");
    assert!(authorize(&teams(), token.header("x", "y")).await.is_ok());
}

#[tokio::test]
async fn a_name_that_was_found_good_vouches_for_no_other() {
    let access = everybody();
    let named = |host: &str| Request::builder().uri(METADATA).header(header::HOST, host);
    // Neither the first, which is bad, nor the second is what later ones are measured by.
    assert_eq!(authorize(&access, named("evil.example")).await, Err(Reason::BadRequest));
    for host in ["localhost", "localhost", "127.0.0.1:1", "localhost"] {
        assert!(authorize(&access, named(host)).await.is_ok(), "{host}");
    }
    for host in ["evil.example", "localhost.evil.example", "localhos", "localhost "] {
        assert_eq!(authorize(&access, named(host)).await, Err(Reason::BadRequest), "{host}");
    }
    let twice = named("localhost").header(header::HOST, "localhost");
    assert_eq!(authorize(&access, twice).await, Err(Reason::BadRequest));
    let absolute = |target: &str| Request::builder().uri(target).header(header::HOST, "localhost");
    assert_eq!(authorize(&access, absolute(&format!("http://evil.example{METADATA}"))).await, Err(Reason::BadRequest));
    assert!(authorize(&access, absolute(&format!("http://127.0.0.1{METADATA}"))).await.is_ok());
}

#[tokio::test]
async fn teams_show_their_token() {
    let with = |presented: String| request(METADATA).header(header::AUTHORIZATION, presented);
    assert_eq!(authorize(&teams(), with("Bearer token-1".into())).await.unwrap(), "a");
    assert_eq!(authorize(&teams(), with("bearer token-2".into())).await.unwrap(), "a");
    assert_eq!(authorize(&teams(), with(basic("b", "token-3"))).await.unwrap(), "b");
    let bad = [
        "Bearer token-4".into(),
        "Bearer".into(),
        "Bearer ".into(),
        "Digest token-1".into(),
        "Basic !!!".into(),
        basic("a", "token-3"),
        basic("c", "token-1"),
        basic("", "token-1"),
        basic("a", ""),
    ];
    for presented in bad {
        assert_eq!(authorize(&teams(), with(presented.clone())).await, Err(Reason::Unauthenticated), "{presented}");
    }
    assert_eq!(authorize(&teams(), request(METADATA)).await, Err(Reason::Unauthenticated));
}

#[tokio::test]
async fn paths_are_checked_before_callers() {
    assert_eq!(authorize(&teams(), request("/2010-04-01/Accounts.json")).await, Err(Reason::NotFound));
    assert_eq!(authorize(&teams(), request(QUERY).method("DELETE")).await, Err(Reason::MethodNotAllowed));
    // Without teams no team has listed these operations.
    let fields = request("/v3/ControlPlane/ConversationInsights/CustomFieldMappings");
    assert_eq!(authorize(&everybody(), fields).await, Err(Reason::OperationNotAllowed));
}

#[tokio::test]
async fn a_team_does_only_what_it_may() {
    let narrow = |operations: OperationSet| {
        let mut narrowed = caller("a", &["t"]);
        narrowed.team = Arc::new(Team { operations, ..(*narrowed.team).clone() });
        layer(Callers::Teams(vec![narrowed]))
    };
    let read = narrow([Permission::Metadata].into_iter().collect());
    let with_token = |path| request(path).header(header::AUTHORIZATION, "Bearer t");
    assert!(authorize(&read, with_token(METADATA)).await.is_ok());
    assert_eq!(authorize(&read, with_token(QUERY).method("POST")).await, Err(Reason::OperationNotAllowed));
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let large = |bytes: usize| request(METADATA).header("x-filler", "x".repeat(bytes));
    assert!(authorize(&everybody(), large(MAX_HEAD / 2)).await.is_ok());
    assert_eq!(authorize(&everybody(), large(MAX_HEAD)).await, Err(Reason::HeadersTooLarge));
}

#[tokio::test(start_paused = true)]
async fn a_team_has_its_own_rate() {
    let requests = Rate::new(2, S).map(|rate| TeamRate::full(rate, Instant::now()));
    let layer = layer(Callers::Teams(vec![Caller { requests, ..caller("a", &["t"]) }]));
    let ask = || async {
        let context = Arc::<crate::request::context::RequestContext>::default();
        let incoming = IncomingRequest {
            request: Box::new(
                request(METADATA).header(header::AUTHORIZATION, "Bearer t").body(Empty::<Bytes>::new()).unwrap(),
            ),
            peer: Arc::default(),
            received: Instant::now(),
            context: Arc::clone(&context),
        };
        let inner = service_fn(|_: AuthorizedRequest<_>| {
            std::future::ready(Ok::<_, GatewayError>(Response::new(ResponseBody::empty())))
        });
        let answered = layer.layer(inner).oneshot(incoming).await.map(drop);
        let answered = answered.map_err(|error| (error.reason(), error.retry_after()));
        let (policy, limit) = context.rate_limit.get().cloned().unwrap();
        (answered, policy.to_str().unwrap().to_owned(), limit.to_str().unwrap().to_owned())
    };
    let policy = "\"requests\";q=2;w=1".to_owned();
    assert_eq!(ask().await, (Ok(()), policy.clone(), "\"requests\";r=1;t=0".to_owned()));
    assert_eq!(ask().await, (Ok(()), policy.clone(), "\"requests\";r=0;t=0".to_owned()));
    assert_eq!(ask().await, (Err((Reason::TeamRateLimit, Some(S))), policy.clone(), "\"requests\";r=0;t=1".to_owned()));
    advance(S / 2).await;
    assert!(ask().await.0.is_ok());
}

fn with_certificate(names: &[&str]) -> Peer {
    Peer::default().with_names(names.iter().map(|name| (*name).to_owned()).collect())
}

#[tokio::test(start_paused = true)]
async fn a_token_that_has_expired_is_not_accepted() {
    let clock = Clock::simulated();
    let expires = Some(clock.wall_now() + 60 * S);
    let mut brief = caller("a", &["token-1", "token-2"]);
    brief.tokens[0].expires = expires;
    let layer = layer_of(Callers::Teams(vec![brief]), clock);
    let by = async |token: &str| {
        let bearer =
            authorize(&layer, request(METADATA).header(header::AUTHORIZATION, format!("Bearer {token}"))).await;
        let with_name = request(METADATA).header(header::AUTHORIZATION, basic("a", token));
        assert_eq!(authorize(&layer, with_name).await, bearer);
        bearer
    };
    assert_eq!(by("token-1").await.unwrap(), "a");
    advance(59 * S).await;
    assert_eq!(by("token-1").await.unwrap(), "a");
    advance(S).await;
    assert_eq!(by("token-1").await, Err(Reason::Unauthenticated));
    assert_eq!(by("token-2").await.unwrap(), "a", "the other one does not expire");
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_names_a_team_is_that_team() {
    let by = async |names: &[&str]| admit_peer(&teams(), with_certificate(names), request(METADATA)).await;
    assert_eq!(by(&["a"]).await.unwrap(), "a");
    assert_eq!(by(&["host.example", "b"]).await.unwrap(), "b");
    for names in [&[][..], &["c"], &["A"], &["a.example"], &["*"], &["a", "b"], &["local"], &[""]] {
        assert_eq!(by(names).await, Err(Reason::Unauthenticated), "{names:?}");
    }
    let anybody = admit_peer(&everybody(), with_certificate(&["a"]), request(METADATA)).await;
    assert_eq!(anybody.unwrap(), "local", "without teams there is nobody to name");
}

#[tokio::test(start_paused = true)]
async fn a_token_beside_a_certificate_has_to_be_good_and_of_the_same_team() {
    let by = async |names: &[&str], presented: &str| {
        let request = request(METADATA).header(header::AUTHORIZATION, presented);
        admit_peer(&teams(), with_certificate(names), request).await
    };
    assert_eq!(by(&["a"], "Bearer token-1").await.unwrap(), "a");
    assert_eq!(by(&["host.example"], "Bearer token-3").await.unwrap(), "b", "a certificate may name something else");
    assert_eq!(by(&["a"], &basic("a", "token-2")).await.unwrap(), "a");
    for (names, presented) in [
        (&["a"][..], "Bearer wrong"),
        (&["a"], "Bearer token-3"),
        (&["a", "b"], "Bearer token-1"),
        (&["a"], "Digest x"),
        (&["a"], ""),
    ] {
        assert_eq!(by(names, presented).await, Err(Reason::Unauthenticated), "{names:?} {presented}");
    }
}

#[tokio::test(start_paused = true)]
async fn strangers_are_slowed_and_nobody_else_is() {
    let (layer, clock) = (teams(), Clock::new());
    let took = async |peer: &Peer, token: &str| {
        let begun = clock.now();
        let request = request(METADATA).header(header::AUTHORIZATION, format!("Bearer {token}"));
        let authorized = admit_peer(&layer, peer.clone(), request).await.is_ok();
        (authorized, clock.now() - begun)
    };
    let address = |text: &str| Peer::new(crate::core::peer::Origin::Tcp(text.parse().unwrap()));
    let (one, same, other) = (address("[2001:db8::1]:1"), address("[2001:db8::2]:2"), address("192.0.2.1:1"));
    let mut all = Duration::ZERO;
    for _ in 0..10 {
        all += took(&one, "wrong").await.1;
    }
    assert!(all > 10 * S, "{all:?}");
    assert!(took(&same, "wrong").await.1 > S, "the same network");
    assert_eq!(took(&other, "wrong").await, (false, Duration::ZERO), "another address");
    assert_eq!(took(&one, "token-1").await, (true, Duration::ZERO), "a good token is never held up");
    let missing = admit_peer(&layer, one.clone(), request("/nowhere")).await;
    assert_eq!((missing, took(&one, "token-1").await.1), (Err(Reason::NotFound), Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_page_of_another_site_may_not_ask_where_no_token_is_asked_for() {
    let page = |origin: &str| request(METADATA).header(header::ORIGIN, origin);
    let by_certificate = async |origin: &str| admit_peer(&teams(), with_certificate(&["a"]), page(origin)).await;
    for origin in ["https://evil.example", "null", "http://127.0.0.1:8081"] {
        assert_eq!(authorize(&everybody(), page(origin)).await, Err(Reason::OriginNotAllowed), "{origin}");
        assert_eq!(by_certificate(origin).await, Err(Reason::OriginNotAllowed), "{origin}");
        let with_token = page(origin).header(header::AUTHORIZATION, "Bearer token-1");
        assert!(authorize(&teams(), with_token).await.is_ok(), "{origin}");
        assert_eq!(authorize(&teams(), page(origin)).await, Err(Reason::Unauthenticated), "{origin}");
    }
    for origin in ["http://127.0.0.1:8080", "https://listed.example"] {
        assert!(
            authorize(&everybody(), page(origin)).await.is_ok() && by_certificate(origin).await.is_ok(),
            "{origin}"
        );
    }
    let fetched = |site: &str| request(METADATA).header("sec-fetch-site", site);
    assert_eq!(authorize(&everybody(), fetched("cross-site")).await, Err(Reason::OriginNotAllowed));
    assert!(authorize(&everybody(), fetched("same-origin")).await.is_ok());
}
