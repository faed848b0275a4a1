use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::poll_immediate;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use tower::service_fn;

use super::layer::LARGE_AT_ONCE;
use super::*;
use crate::accounts::Team;
use crate::core::clock::{Clock, Instant};
use crate::core::json;
use crate::core::outcome::Outcome;
use crate::core::peer::{Origin, Peer};
use crate::request::call::UpstreamResponse;
use crate::request::key::Key;
use crate::request::response::Representation;
use crate::twilio::endpoint::Operation;
use crate::twilio::links::Links;
use crate::twilio::parameters::Parameters;
use crate::twilio::policy::Policy;
use crate::twilio::validate::Validation;

const METADATA: &str = r#"{"cubes":[{"name":"C","measures":[{"name":"C.Count","type":"number"}],"dimensions":[
    {"name":"C.Secret","type":"string"},{"name":"C.Status","type":"string"}]}]}"#;
const ASK: &str = r#"{"query":{"measures":["C.Count"]}}"#;

fn page(body: &'static str) -> Arc<Representation> {
    let body = Bytes::from_static(body.as_bytes());
    Arc::new(Representation::new(
        UpstreamResponse { status: StatusCode::OK, headers: HeaderMap::new(), body, next_token: None },
        &[],
    ))
}

/// The layer around a service that records the calls, and answers with metadata or a page that names the next.
#[derive(Clone)]
struct Rig {
    layer: DecodeLayer,
    calls: Arc<Mutex<Vec<ClientQuery>>>,
    /// The page of metadata that is fresh in the cache.
    metadata: Arc<Mutex<Option<Arc<Representation>>>>,
    /// Whether the cache may store metadata.
    keeps: Arc<AtomicBool>,
    purges: Arc<AtomicU64>,
}

impl Rig {
    fn new() -> Self {
        Self::with(IssuedPageTokens::default())
    }

    fn with(tokens: IssuedPageTokens) -> Self {
        let metadata = Arc::<Mutex<Option<Arc<Representation>>>>::default();
        let (keeps, purges) = (Arc::new(AtomicBool::new(true)), Arc::<AtomicU64>::default());
        let (cached, is_kept, count) = (Arc::clone(&metadata), Arc::clone(&keeps), Arc::clone(&purges));
        let look_up = move |key: &Key| {
            assert_eq!(*key, Key::of_metadata(&Team::example("a").account));
            cached.lock().unwrap().clone().filter(|_| is_kept.load(Ordering::SeqCst))
        };
        let fresh = FreshPages::new(look_up, move || count.load(Ordering::SeqCst));
        let limits =
            Limits { max_body: 1 << 20, body_timeout: Duration::from_secs(1), deadline: Duration::from_secs(9) };
        let bodies = Bodies::new(1 << 20);
        let links = Links::new(&"http://upstream".parse().unwrap(), None);
        let layer = DecodeLayer::new(limits, bodies, fresh, tokens, Validation::Hint, links);
        Self { layer, calls: Arc::default(), metadata, keeps, purges }
    }

    async fn ask(
        &self,
        policy: Option<&Arc<Policy>>,
        operation: Operation,
        query: &str,
        body: &'static str,
    ) -> Result<Response<ResponseBody>, Reason> {
        let request = Request::builder().method(Method::POST).uri(format!("{}?{query}", operation.endpoint().path));
        let request = request.body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap();
        let (received, context) = (Instant::now(), Arc::default());
        let incoming = IncomingRequest {
            request: Box::new(request),
            peer: Arc::new(Peer::new(Origin::Tcp(SocketAddr::from(([127, 0, 0, 1], 1))))),
            received,
            context,
        };
        let team = Arc::new(Team { policy: policy.cloned(), ..Team::example("a") });
        let (calls, metadata) = (Arc::clone(&self.calls), Arc::clone(&self.metadata));
        let inner = service_fn(move |call: ClientQuery| {
            let page = match call.endpoint.operation {
                Operation::Metadata => metadata.lock().unwrap().get_or_insert_with(|| page(METADATA)).clone(),
                _ => page(r#"{"meta":{"nextToken":"a+b"}}"#),
            };
            // As the layer below does.
            let redacted = call.redact.as_ref().and_then(|redact| redact.redact(&page).unwrap());
            let page = redacted.map_or(page, |redacted| Arc::clone(&redacted.representation));
            calls.lock().unwrap().push(call);
            std::future::ready(Ok(ClientResponse {
                etag: page.etag.clone(),
                page,
                coded: None,
                outcome: Outcome::Miss,
                cache_status: HeaderValue::from_static("insights-gateway; detail=miss"),
                age: None,
                not_modified: false,
                headers: Vec::new(),
            }))
        });
        let answer =
            self.layer.layer(inner).oneshot(AuthorizedRequest { incoming, endpoint: operation.endpoint(), team }).await;
        answer.map_err(|error: GatewayError| error.reason())
    }

    fn calls(&self) -> Vec<Operation> {
        self.calls.lock().unwrap().iter().map(|call| call.endpoint.operation).collect()
    }

    fn last(&self) -> ClientQuery {
        self.calls.lock().unwrap().last().unwrap().clone()
    }
}

fn policy(deny: &str) -> Arc<Policy> {
    Arc::new(Policy::new(&[deny.to_owned()], &[]))
}

#[tokio::test]
async fn a_team_with_a_policy_needs_metadata_once_and_then_memory_alone() {
    let (rig, policy) = (Rig::new(), policy("C.Secret"));
    for _ in 0..4 {
        assert!(rig.ask(Some(&policy), Operation::Query, "pageSize=3", ASK).await.is_ok());
    }
    use Operation::{Metadata, Query};
    assert_eq!(rig.calls(), [Metadata, Query, Query, Query, Query]);
    let bodies: Vec<_> = rig.calls.lock().unwrap().iter().map(|call| call.canonical.body.as_ptr()).collect();
    assert!(bodies[1] != bodies[2] && bodies[3] == bodies[4], "the same bytes, not parsed again");
    let remembered = rig.last();
    assert_eq!(*remembered.key(), Key::new(&Team::example("a").account, Query, "pageSize=3", ASK.as_bytes()));
    // Nothing is remembered for other metadata.
    *rig.metadata.lock().unwrap() = Some(page(r#"{"cubes":[{"name":"C","measures":[],"dimensions":[]}]}"#));
    assert_eq!(rig.ask(Some(&policy), Query, "pageSize=3", ASK).await.err(), Some(Reason::FieldNotAllowed));
    // The same metadata in another page gives the same result.
    *rig.metadata.lock().unwrap() = Some(page(METADATA));
    assert!(rig.ask(Some(&policy), Query, "pageSize=3", ASK).await.is_ok());
    assert_eq!(rig.last().canonical.body.as_ptr(), remembered.canonical.body.as_ptr());
}

#[tokio::test]
async fn a_purge_removes_the_view_of_metadata_that_is_not_stored() {
    use Operation::{Metadata, Query};
    let (rig, policy) = (Rig::new(), policy("C.Secret"));
    rig.keeps.store(false, Ordering::SeqCst);
    let ask = || rig.ask(Some(&policy), Query, "", ASK);
    assert!(ask().await.is_ok() && ask().await.is_ok());
    assert_eq!(rig.calls(), [Metadata, Query, Query]);
    rig.purges.fetch_add(1, Ordering::SeqCst);
    assert!(ask().await.is_ok() && ask().await.is_ok());
    assert_eq!(rig.calls(), [Metadata, Query, Query, Metadata, Query, Query]);
}

#[tokio::test]
async fn a_write_is_passed_on_byte_for_byte_but_parsed_strictly() {
    const BODY: &str = "{ \"name\" : \"\\u0041\", \"n\":1.0e+2,\r\n\"field\":null }";
    let rig = Rig::new();
    let write = |body| rig.ask(None, Operation::FieldsWrite, "x=1", body);
    assert!(write(BODY).await.is_ok());
    assert_eq!(rig.last().canonical.body, BODY);
    for body in ["", "{", "{} {}", r#"{"a":1,"a":2}"#, r#"{"a":1,"\u0061":2}"#, r#""\ud800""#, "name=x"] {
        assert_eq!(write(body).await.err(), Some(Reason::InvalidJson), "{body}");
    }
    let many: &str = format!("[{}0]", "0,".repeat(json::MAX_VALUES)).leak();
    assert_eq!(write(many).await.err(), Some(Reason::BodyTooLarge));
    assert_eq!(rig.calls().len(), 1);
}

#[tokio::test]
async fn what_one_team_may_ask_is_not_remembered_for_another() {
    const SECRET: &str = r#"{"query":{"dimensions":["C.Secret"]}}"#;
    let (rig, one, other) = (Rig::new(), policy("C.Secret"), policy("C.Status"));
    for _ in 0..4 {
        assert!(rig.ask(None, Operation::Query, "", SECRET).await.is_ok());
        assert!(rig.ask(Some(&other), Operation::Query, "", SECRET).await.is_ok());
        assert_eq!(rig.ask(Some(&one), Operation::Query, "", SECRET).await.err(), Some(Reason::FieldNotAllowed));
    }
}

#[tokio::test]
async fn a_query_refused_whatever_metadata_says_costs_no_call() {
    let (rig, policy) = (Rig::new(), policy("C.Secret"));
    let refused = Some(Reason::FieldNotAllowed);
    for (query, body) in [
        ("pageToken=a", ASK),
        ("", r#"{"query":{"measures":["C.Count "]}}"#),
        ("", r#"{"query":{},"domain":1}"#),
        ("pageToken=a&pageToken=b", ASK),
    ] {
        assert_eq!(rig.ask(Some(&policy), Operation::Query, query, body).await.err(), refused, "{query} {body}");
    }
    assert_eq!(rig.ask(Some(&policy), Operation::Query, "", "[").await.err(), Some(Reason::InvalidJson));
    assert_eq!(rig.ask(Some(&policy), Operation::Query, "a=%", ASK).await.err(), Some(Reason::BadRequest));
    for operation in Operation::ALL {
        use Operation::{FieldsRead, FieldsWrite, JobList, JobResults, JobStatus, JobSubmit};
        let (query, body) = match operation {
            FieldsRead | FieldsWrite => ("", ""),
            JobSubmit => ("pageSize=3", ASK),
            JobList => ("status=FAILED&x=1", ""),
            JobStatus => ("pageSize=3", ""),
            JobResults => ("status=FAILED", ""),
            _ => continue,
        };
        assert_eq!(rig.ask(Some(&policy), operation, query, body).await.err(), refused, "{operation:?}");
    }
    assert_eq!(rig.ask(Some(&policy), Operation::Metadata, "x=1", "").await.err(), refused);
    assert_eq!(rig.calls(), []);
}

#[tokio::test]
async fn a_page_is_expected_by_the_key_of_its_token_alone() {
    let (rig, policy) = (Rig::new(), policy("C.Secret"));
    let alone = Key::of_page(&Team::example("a").account, &Parameters::of_page("a+b"));
    let refused = Some(Reason::FieldNotAllowed);
    assert_eq!(rig.ask(Some(&policy), Operation::Page, "pageToken=a%2Bb", "").await.err(), refused);
    assert!(rig.ask(None, Operation::Query, "", ASK).await.is_ok());
    assert_eq!(rig.ask(Some(&policy), Operation::Page, "pageToken=a%2Bb", "").await.err(), refused);
    assert!(rig.ask(Some(&policy), Operation::Query, "", ASK).await.is_ok());
    for (query, sized) in [("pageToken=a+b", false), ("PageToken=a%2bb", false), ("PageSize=3&PageToken=a+b", true)] {
        assert!(rig.ask(Some(&policy), Operation::Page, query, "").await.is_ok(), "{query}");
        let call = rig.last();
        assert_eq!((*call.key() == alone, call.canonical.expected_as), (!sized, sized.then_some(alone)), "{query}");
    }
    assert_eq!(rig.ask(Some(&self::policy("C.Status")), Operation::Page, "pageToken=a+b", "").await.err(), refused);
    assert_eq!(rig.ask(None, Operation::Page, "pageSize=3", "").await.err(), Some(Reason::InvalidQuery));
}

#[tokio::test]
async fn metadata_is_redacted_for_a_team_whose_policy_hides_members() {
    let (rig, policy) = (Rig::new(), policy("C.Secret"));
    let answer = rig.ask(Some(&policy), Operation::Metadata, "", "").await.unwrap();
    let etag = answer.headers()[header::ETAG].clone();
    assert_ne!(etag, page(METADATA).etag.clone().unwrap());
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(!body.windows(6).any(|part| part == b"Secret"), "{body:?}");
    assert!(rig.ask(None, Operation::Metadata, "", "").await.unwrap().headers()[header::ETAG] != etag);
}

#[tokio::test]
async fn a_large_body_is_parsed_outside_the_thread_that_serves_others() {
    let (rig, policy) = (Rig::new(), policy("C.Secret"));
    let large: &str = format!(r#"{{"query":{{"measures":[{}"C.Count"]}}}}"#, r#""C.Count","#.repeat(LARGE / 8)).leak();
    for policy in [None, Some(&policy)] {
        assert!(matches!(poll_immediate(rig.ask(policy, Operation::Query, "", ASK)).await, Some(Ok(_))));
        // All permits are taken, so a large body cannot have been parsed when others are served.
        let permits = rig.layer.large.acquire_many(LARGE_AT_ONCE as u32).await.unwrap();
        let mut reading = std::pin::pin!(rig.ask(policy, Operation::Query, "", large));
        assert!(poll_immediate(reading.as_mut()).await.is_none(), "it would block this thread");
        assert!(matches!(poll_immediate(rig.ask(policy, Operation::Query, "", ASK)).await, Some(Ok(_))));
        drop(permits);
        assert!(reading.await.is_ok());
    }
}

#[tokio::test]
async fn a_page_token_of_one_replica_holds_on_another() {
    let grants = Arc::<crate::request::grants::MemoryGrants>::default();
    let replica = || {
        let tokens =
            IssuedPageTokens::default().shared_by(Arc::clone(&grants) as _, Duration::from_secs(60), Clock::new());
        Rig::with(tokens)
    };
    let (one, two, alone) = (replica(), replica(), Rig::new());
    let [policy, other] = ["C.Secret", "C.Status"].map(|denied| Arc::new(Policy::new(&[denied.to_owned()], &[])));
    one.ask(Some(&policy), Operation::Query, "", ASK).await.unwrap();
    let follow = async |rig: &Rig, policy| rig.ask(Some(policy), Operation::Page, "pageToken=a%2Bb", "").await;
    assert!(follow(&two, &policy).await.is_ok());
    for (rig, policy) in [(&two, &other), (&alone, &policy)] {
        assert_eq!(follow(rig, policy).await.unwrap_err(), Reason::FieldNotAllowed);
    }
}
