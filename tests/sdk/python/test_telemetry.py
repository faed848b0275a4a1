"""Reads the gateway's traces and metrics with the tools that operators use."""

import json
import math
import socket
import urllib.error
import urllib.request

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from prometheus_client.parser import text_string_to_metric_families

from collector import Collector, Receiver, attributes
from queries import by_status, client_of
from stack import PATIENCE_SECONDS, wait_for

QUERY = "/v3/InsightsDomains/Conversations/Query"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

TWO_ACCOUNTS = f"""
[accounts.second]
account_sid = "AC{"1" * 32}"
api_key = "SK{"1" * 32}"
api_secret = {{ env = "ACCOUNT_SECRET" }}
[teams.dashboards]
account = "main"
token_sha256 = ["{"0" * 64}"]
"""


@pytest.fixture
def collector(tmp_path):
    receiver = Receiver()
    collector = Collector(tmp_path, receiver)
    yield collector, receiver
    collector.close()
    receiver.close()


@pytest.fixture
def nobody():
    """The address of a port that is bound, so that no other process gets it, but that does not listen."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def post(stack, body, **headers):
    """Sends a query with these additional headers."""
    request = urllib.request.Request(
        stack.url + QUERY,
        json.dumps(body).encode(),
        {"Content-Type": "application/json", **headers},
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
        return answer.status, answer.headers["X-Request-Id"]


def a_query():
    return {"query": {"measures": ["Conversation.Count"], "dimensions": ["Conversation.ConversationStatus"]}}


def telemetry(url, sample=0):
    return f'[telemetry]\notlp = "{url}"\nsample = {sample}\n[retry]\nbase = "1ms"\n'


def test_a_collector_reads_the_spans_of_a_request(start, collector):
    collector, receiver = collector
    stack = start(more_config=telemetry(collector.url))
    stack.script(next=1, status=503)
    status, request_id = post(stack, a_query(), traceparent=f"00-{TRACE}-{PARENT}-01", tracestate="a=1")
    assert status == 200
    wait_for(lambda: len(receiver.spans) >= 8, "the spans")

    spans = {span.name: span for _, span in receiver.spans}
    expected = ["POST query", "admit", "read", "cache", "queue wait 1", "attempt 1", "queue wait 2", "attempt 2"]
    assert sorted(spans) == sorted(expected) and len(receiver.spans) == len(expected)
    assert {resource["service.name"] for resource, _ in receiver.spans} == {"insights-gateway"}
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    assert {span.trace_state for span in spans.values()} == {"a=1"}

    request = spans["POST query"]
    assert (request.parent_span_id.hex(), request.kind) == (PARENT, Span.SPAN_KIND_SERVER)
    assert attributes(request).items() >= {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "url.path": QUERY,
        "insights_gateway.request_id": request_id,
        "insights_gateway.team": "local",
        "insights_gateway.account": "main",
        "insights_gateway.operation": "query",
        "insights_gateway.outcome": "miss",
    }.items()
    for name in ["admit", "read", "cache"]:
        assert spans[name].parent_span_id == request.span_id
    for name in expected[4:]:
        assert spans[name].parent_span_id == spans["cache"].span_id
    for span in spans.values():
        assert request.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= request.end_time_unix_nano
    attempts = [spans["attempt 1"], spans["attempt 2"]]
    assert [attributes(span)["http.response.status_code"] for span in attempts] == [503, 200]
    assert [span.status.code for span in attempts] == [Status.STATUS_CODE_ERROR, Status.STATUS_CODE_UNSET]
    assert {span.kind for span in attempts} == {Span.SPAN_KIND_CLIENT}
    assert "traceparent" in stack.received()[0]["headers"]

    lines = [json.loads(line) for line in stack.log.read_text().splitlines() if line.startswith("{")]
    access = [line for line in lines if line["target"] == "insights_gateway::access"]
    assert [line["trace_id"] for line in access if line["request_id"] == request_id] == [TRACE]


def test_sampled_spans_are_sent_and_lost_spans_are_counted(start, collector):
    collector, receiver = collector
    stack = start(more_config=telemetry(collector.url, sample=1))
    client = client_of(stack.url)
    for _ in range(20):
        client.insights.v3.query.create(by_status())
    outcomes = lambda: [attributes(span).get("insights_gateway.outcome") for _, span in receiver.spans]
    wait_for(lambda: (outcomes().count("miss"), outcomes().count("hit")) == (1, 19), "the miss and the hits")
    wait_for(lambda: sample(stack, "spans", result="exported") == len(receiver.spans), "the count")
    assert sample(stack, "spans", result="dropped") == sample(stack, "spans", result="failed") == 0


def test_an_unavailable_collector_delays_no_request(start, nobody):
    stack = start(more_config=telemetry(nobody, sample=1))
    client = client_of(stack.url)
    assert client.insights.v3.query.create(by_status()).items
    wait_for(lambda: sample(stack, "spans", result="failed") > 0, "the loss")
    assert client.insights.v3.query.create(by_status()).items
    wait_for(lambda: "spans are lost" in stack.log.read_text(), "the line that says so")


def exposition(stack):
    with urllib.request.urlopen(stack.admin + "/metrics", timeout=PATIENCE_SECONDS) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return answer.read().decode()


def sample(stack, family, **labels):
    families = text_string_to_metric_families(exposition(stack))
    found = [s.value for f in families for s in f.samples if f.name == "insights_gateway_" + family and s.labels == labels]
    assert len(found) == 1, found
    return found[0]


def test_prometheus_reads_every_line_of_the_metrics(start):
    stack = start(more_config=TWO_ACCOUNTS)
    with pytest.raises(urllib.error.HTTPError):
        post(stack, a_query())
    text = exposition(stack)
    families = {family.name: family for family in text_string_to_metric_families(text)}
    samples = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert sum(len(family.samples) for family in families.values()) == len(samples)
    assert len(set(line.rsplit(" ", 1)[0] for line in samples)) == len(samples), "no sample occurs twice"
    for name, family in families.items():
        assert name.startswith("insights_gateway_") and family.documentation and family.type != "unknown", name
        label_names = {frozenset(s.labels) - {"le"} for s in family.samples}
        assert len(label_names) == 1, (name, label_names)
        if family.type == "histogram":
            check_histogram(family)
        for s in family.samples:
            assert family.type == "gauge" or s.value >= 0, s
    assert sample(stack, "errors", reason="unauthenticated") == 1


def check_histogram(family):
    """Bucket values never fall, and the last bucket is infinity and equals the count."""
    series = {}
    for s in family.samples:
        key = tuple(sorted((name, value) for name, value in s.labels.items() if name != "le"))
        series.setdefault(key, []).append(s)
    for samples in series.values():
        buckets = [(float(s.labels["le"]), s.value) for s in samples if s.name.endswith("_bucket")]
        assert buckets == sorted(buckets) and buckets[-1][0] == math.inf
        assert [value for _, value in buckets] == sorted(value for _, value in buckets)
        (count,) = [s.value for s in samples if s.name.endswith("_count")]
        assert buckets[-1][1] == count
        assert len([s for s in samples if s.name.endswith("_sum")]) == 1
