//! Gives ended requests to the exporter and checks what a collector receives.

use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::sync::Notify;

use super::*;
use crate::core::clock::Instant;
use crate::core::error::Reason;
use crate::core::outcome::Outcome;
use crate::request::context::{RequestContext, RequestHead, Stage, UpstreamEvent, UpstreamEventKind};
use crate::semantics::trace::{SpanId, TRACEPARENT, TRACESTATE, TraceContext};
use crate::twilio::endpoint::Operation;

const S: Duration = Duration::from_secs(1);

/// A request that was traced by its client, missed, and was tried twice.
async fn miss(clock: Clock) -> RequestEnded {
    let parent = HeaderValue::from_static("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let headers = [(TRACEPARENT, parent), (TRACESTATE, HeaderValue::from_static("a=1"))].into_iter().collect();
    let context = RequestContext::new(head(), TraceContext::read(&headers), Some(clock));
    let received = clock.now();
    let _ = context.operation.set(Operation::Query);
    for stage in [Stage::Authenticate, Stage::Read] {
        tokio::time::advance(S).await;
        context.end_of(stage);
    }
    for result in [Err(Reason::UpstreamTimeout), Ok(200)] {
        let (begun, ended) = (clock.now(), clock.now() + S);
        let granted = UpstreamEventKind::Wait { granted: true };
        context.add(UpstreamEvent { begun, ended: Some(begun), kind: granted });
        let number = context.attempt_begins(begun, Some(SpanId::random()));
        context.attempt_ended(number, ended, result);
        tokio::time::advance(S).await;
    }
    context.end_of(Stage::Cache);
    finished(context, received, clock.now())
}

fn head() -> RequestHead {
    RequestHead {
        id: HeaderValue::from_static("id-1"),
        method: Method::POST,
        target: Some(PathAndQuery::from_static("/v3/a?pageToken=secret")),
        ..RequestHead::default()
    }
}

fn finished(context: RequestContext, received: Instant, ended: Instant) -> RequestEnded {
    RequestEnded {
        context: Arc::new(context),
        received,
        ended,
        outcome: Outcome::Miss,
        status: 200,
        bytes: 7,
        is_traced: true,
    }
}

/// A collector that answers as it is told, and then accepts everything.
#[derive(Default)]
struct Collector {
    taken: Mutex<Vec<Bytes>>,
    troubles: Mutex<VecDeque<bool>>,
    /// How long it asks to stay away whenever it takes nothing.
    retry_after: Option<Duration>,
    /// Accepts nothing before this.
    open: Option<Notify>,
}

fn exporter(collector: &Arc<Collector>, metrics: &Arc<Metrics>, clock: Clock) -> Exporter {
    let collector = Arc::clone(collector);
    let transport: Transport = Box::new(move |bytes| {
        let collector = Arc::clone(&collector);
        Box::pin(async move {
            if let Some(open) = &collector.open {
                open.notified().await;
            }
            if let Some(transient) = collector.troubles.lock().unwrap().pop_front() {
                let retry_after = collector.retry_after;
                return Err(ExportError { transient, retry_after, message: "no".to_owned() });
            }
            collector.taken.lock().unwrap().push(bytes);
            Ok(())
        })
    });
    Exporter::with(transport, Arc::clone(metrics), clock)
}

fn counted(metrics: &Metrics, result: &'static str) -> u64 {
    metrics.spans.get_or_create(&ResultLabels { result: StaticLabel(result) }).get()
}

#[tokio::test(start_paused = true)]
async fn a_request_is_a_span_with_its_stages_and_the_way_upstream_below() {
    let miss = miss(Clock::new()).await;
    let spans = spans::of(&miss);
    let names: Vec<&str> = spans.iter().map(|span| &*span.name).collect();
    let expected = ["POST query", "admit", "read", "cache", "queue wait 1", "attempt 1", "queue wait 2", "attempt 2"];
    assert_eq!(names, expected);
    let (request, cache) = (&spans[0], &spans[3]);
    assert_eq!(request.parent.unwrap().to_string(), "b7ad6b7169203331");
    assert!(request.is_remote && spans[1..].iter().all(|span| !span.is_remote && span.state == "a=1"));
    assert!(spans[1..4].iter().all(|span| span.parent == Some(request.id)));
    assert!(spans[4..].iter().all(|span| span.parent == Some(cache.id)));
    let took: Vec<u64> = spans.iter().map(|span| (span.ended - span.begun).as_secs()).collect();
    assert_eq!(took, [4, 1, 1, 2, 0, 1, 0, 1]);
    let failed: Vec<bool> = spans.iter().map(|span| span.failed).collect();
    assert_eq!(failed, [false, false, false, false, false, true, false, false]);
    let named = miss.context.upstream_events().into_iter().filter_map(|event| match event.kind {
        UpstreamEventKind::Attempt { span, .. } => span,
        UpstreamEventKind::Wait { .. } => None,
    });
    assert!(named.eq([spans[5].id, spans[7].id]), "the ids that Twilio was told");
    assert!(!format!("{spans:?}").contains("secret"));
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_outlives_its_request_has_a_span_until_the_request_ends() {
    let clock = Clock::new();
    let context = RequestContext::new(head(), Some(TraceContext::begin()), Some(clock));
    let received = clock.now();
    for stage in Stage::ALL {
        context.end_of(stage);
    }
    context.attempt_begins(received + S, None);
    let ended = finished(context, received, received + 3 * S);
    let spans = spans::of(&ended);
    let attempt = spans.last().unwrap();
    assert_eq!((&*attempt.name, (attempt.ended - attempt.begun).as_secs(), attempt.failed), ("attempt 1", 2, false));
}

#[tokio::test(start_paused = true)]
async fn what_ends_early_has_only_the_spans_that_began() {
    let clock = Clock::new();
    let context = RequestContext::new(head(), Some(TraceContext::begin()), Some(clock));
    context.end_of(Stage::Authenticate);
    let mut refused = finished(context, clock.now(), clock.now() + S);
    refused.status = 401;
    let names =
        |finished: &RequestEnded| spans::of(finished).iter().map(|span| span.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(&refused), ["POST", "admit"]);
    refused.status = RequestEnded::CLIENT_LEFT;
    assert_eq!(names(&refused), ["POST", "admit", "read", "cache"]);
    let brew = RequestHead { method: Method::from_bytes(b"BREW").unwrap(), ..head() };
    let context = RequestContext::new(brew, Some(TraceContext::begin()), Some(clock));
    assert_eq!(names(&finished(context, clock.now(), clock.now()))[0], "HTTP");
    assert!(spans::of(&finished(RequestContext::default(), clock.now(), clock.now())).is_empty());
}

#[tokio::test(start_paused = true)]
async fn requests_are_gathered_and_sent_together() {
    let (clock, metrics, collector) = (Clock::new(), Metrics::new(), Arc::<Collector>::default());
    let exporter = exporter(&collector, &metrics, clock);
    for miss in [miss(clock).await, miss(clock).await] {
        exporter.offer(miss);
    }
    exporter.close().await;
    assert_eq!(collector.taken.lock().unwrap().len(), 1);
    assert_eq!(counted(&metrics, "exported"), 16);
}

#[tokio::test(start_paused = true)]
async fn transient_errors_are_retried_and_lasting_ones_cost_the_spans() {
    let (clock, metrics, collector) = (Clock::new(), Metrics::new(), Arc::<Collector>::default());
    let exporter = exporter(&collector, &metrics, clock);
    let ended = || async { tokio::time::sleep(60 * S).await };
    *collector.troubles.lock().unwrap() = VecDeque::from([true, true]);
    exporter.offer(miss(clock).await);
    ended().await;
    assert_eq!((counted(&metrics, "exported"), counted(&metrics, "failed")), (8, 0));
    *collector.troubles.lock().unwrap() = VecDeque::from([false]);
    exporter.offer(miss(clock).await);
    ended().await;
    assert_eq!((counted(&metrics, "exported"), counted(&metrics, "failed")), (8, 8));
    *collector.troubles.lock().unwrap() = VecDeque::from([true; TRIES as usize]);
    exporter.offer(miss(clock).await);
    ended().await;
    assert_eq!((counted(&metrics, "exported"), counted(&metrics, "failed")), (8, 16));
}

#[tokio::test(start_paused = true)]
async fn a_collector_is_left_alone_for_as_long_as_it_asks_and_no_longer_than_a_minute() {
    for (asked, waited) in [(30, 30), (24 * 3600, 60)] {
        let (clock, metrics) = (Clock::new(), Metrics::new());
        let collector = Collector { retry_after: Some(Duration::from_secs(asked)), ..Collector::default() };
        *collector.troubles.lock().unwrap() = VecDeque::from([true]);
        let collector = Arc::new(collector);
        let exporter = exporter(&collector, &metrics, clock);
        exporter.offer(miss(clock).await);
        tokio::time::sleep(GATHER + waited * S - Duration::from_millis(1)).await;
        assert_eq!(counted(&metrics, "exported"), 0, "{asked}");
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert_eq!(counted(&metrics, "exported"), 8, "{asked}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_hangs_costs_spans_and_delays_no_request() {
    let (clock, metrics) = (Clock::new(), Metrics::new());
    let collector = Arc::new(Collector { open: Some(Notify::new()), ..Collector::default() });
    let exporter = exporter(&collector, &metrics, clock);
    let begun = clock.now();
    let context = || RequestContext::new(head(), Some(TraceContext::begin()), Some(clock));
    for _ in 0..2 * BATCH + QUEUE {
        exporter.offer(finished(context(), begun, begun));
        if counted(&metrics, "dropped") == 0 {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(clock.now(), begun);
    let dropped = counted(&metrics, "dropped");
    assert!((1..=2 * BATCH as u64).contains(&dropped), "{dropped}");
    exporter.close().await;
    assert_eq!(clock.now() - begun, LAST, "a process that ends does not wait for it either");
}

/// A field of a message: its number, and its bytes or its number as eight bytes.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut number = 0;
        for shift in (0..).step_by(7) {
            let (byte, rest) = bytes.split_first().unwrap();
            *bytes = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        number
    }
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let length = match tag & 7 {
            0 => {
                fields.push((tag >> 3, varint(&mut bytes).to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            2 => varint(&mut bytes) as usize,
            5 => 4,
            wire => panic!("wire type {wire}"),
        };
        let (value, rest) = bytes.split_at(length);
        fields.push((tag >> 3, value.to_vec()));
        bytes = rest;
    }
    fields
}

#[tokio::test(start_paused = true)]
async fn spans_are_written_field_by_field() {
    let clock = Clock::new();
    let miss = miss(clock).await;
    let requests = [spans::of(&miss)];
    let bytes = otlp::encode(&requests, clock);
    let only = |bytes: &[u8], number: u64| -> Vec<u8> {
        let found: Vec<_> = fields(bytes).into_iter().filter(|(n, _)| *n == number).collect();
        assert_eq!(found.len(), 1, "field {number}");
        found[0].1.clone()
    };
    let scope_spans = only(&only(&bytes, 1), 2);
    let spans: Vec<_> = fields(&scope_spans).into_iter().filter(|(n, _)| *n == 2).map(|(_, span)| span).collect();
    assert_eq!(spans.len(), 8);
    let request = &spans[0];
    assert_eq!(only(request, 1), requests[0][0].trace.to_bytes());
    assert_eq!(only(request, 4), 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
    assert_eq!((only(request, 5), only(request, 3)), (b"POST query".to_vec(), b"a=1".to_vec()));
    let number = |field| u64::from_le_bytes(only(request, field).try_into().unwrap());
    assert_eq!((number(6), number(8) - number(7)), (2, 4_000_000_000));
    assert_eq!(only(request, 16), 0x301_u32.to_le_bytes());
    assert!(fields(request).iter().any(|(n, pair)| *n == 9 && only(pair, 1) == b"insights_gateway.outcome"));
    assert_eq!(only(&only(&spans[5], 15), 3), 2_u64.to_le_bytes());
}
