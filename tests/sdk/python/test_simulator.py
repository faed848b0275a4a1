"""Sends requests with Twilio's own, unmodified Python SDK to the simulator alone, and to a gateway in front of it: query jobs
and custom fields."""

import asyncio
import hashlib
import time
import uuid
from datetime import datetime

import pytest
from twilio.base.exceptions import TwilioRestException
from twilio.http.async_http_client import AsyncTwilioHttpClient
from twilio.rest.insights.v3.custom_field_mapping import CustomFieldMappingList
from twilio.rest.insights.v3.query import QueryList
from twilio.rest.insights.v3.query_job import QueryJobList
from twilio.rest.insights.v3.result import ResultList

from queries import client_of
from stack import ACCOUNT_KEY, PATIENCE_SECONDS, ROWS, Simulator, Stack

# The id in Twilio's own examples. In the simulator, it is the only operator that writes JSON.
OPERATOR = "intelligence_operator_01h9d8r0vte3hz8tykdj329t7r"


TOKEN = "igw_a-token-that-only-this-test-knows"
TEAM = f"""
[teams.all]
account = "main"
token_sha256 = ["{hashlib.sha256(TOKEN.encode()).hexdigest()}"]
operations = ["metadata", "query", "jobs", "fields-read", "fields-write"]
"""


@pytest.fixture(params=["alone", "behind a gateway"])
def simulator(request, tmp_path):
    simulator = Simulator(tmp_path) if request.param == "alone" else Stack(tmp_path, more_config=TEAM)
    simulator.client = lambda http_client=None: client_of(
        simulator.url, *((ACCOUNT_KEY, "secret") if request.param == "alone" else ("all", TOKEN)), http_client
    )
    yield simulator
    simulator.close()


@pytest.fixture
def v3(simulator):
    return simulator.client().insights.v3


def by_conversation(*orders):
    """A job with one row for each conversation. Jobs with other orders are other jobs."""
    # The SDK cannot send a plain dictionary here, since its module lacks a class that this needs.
    query = QueryList.QueryDefinition(
        {
            "measures": ["Conversation.Count"],
            "dimensions": ["Conversation.ConversationId"],
            "orderBy": [{"field": "Conversation.ConversationId", "direction": order} for order in orders],
        }
    )
    return QueryJobList.InsightsQueryRequest({"domain": "Conversations", "query": query})


# Three different orders, for three different jobs.
ORDERS = [(), ("ASC",), ("DESC",)]


def ended(v3, job):
    """Polls like an application, but more often."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        found = v3.query_jobs(job.operation_id).fetch()
        if found.status not in ("PENDING", "RUNNING"):
            return found
        assert found.completed_at is None and found.error is None
        time.sleep(0.02)
    raise TimeoutError(f"the job is still {found.status}")


def refusal(call):
    with pytest.raises(TwilioRestException) as caught:
        call()
    return caught.value.status, caught.value.code


def test_a_job_is_created_polled_and_read_page_by_page(simulator, v3):
    job = v3.query_jobs.create(by_conversation())
    assert job.status == "PENDING"
    assert isinstance(job.created_at, datetime)
    assert job.status_url.startswith(simulator.url + "/v3/")
    done = ended(v3, job)
    assert (done.status, done.result_id, done.result_retention_period) == ("COMPLETED", job.operation_id, "P7D")
    assert isinstance(done.completed_at, datetime)
    results = ResultList(v3, job.operation_id)
    page = results.fetch(page_size=100)
    rows = list(page.items)
    while token := page.meta.get("nextToken"):
        page = results.fetch(page_size=100, page_token=token)
        rows += page.items
    assert len({row["Conversation.ConversationId"] for row in rows}) == len(rows) == ROWS


def test_a_failed_job_says_why(simulator, v3):
    simulator.script(next_jobs=1, status="FAILED")
    done = ended(v3, v3.query_jobs.create(by_conversation()))
    assert (done.status, done.error["code"], done.error["httpStatusCode"]) == ("FAILED", 50001, 504)
    results = ResultList(v3, done.operation_id)
    assert refusal(lambda: results.fetch()) == (404, 20404)


def test_jobs_are_listed_by_status(simulator, v3):
    simulator.script(next_jobs=2, status="FAILED", takes="0s")
    jobs = [v3.query_jobs.create(by_conversation(*orders)) for orders in ORDERS]
    ids = [job.operation_id for job in reversed(jobs)]
    assert [job.operation_id for job in v3.query_jobs.list(page_size=1)] == ids
    assert [job.operation_id for job in v3.query_jobs.list(limit=2)] == ids[:2]
    assert [job.operation_id for job in v3.query_jobs.list(status="FAILED", page_size=1)] == ids[1:]
    assert len(v3.query_jobs.list(limit=5000)) == 3


def test_a_key_makes_one_job(v3):
    key = str(uuid.uuid4())
    first = v3.query_jobs.create(by_conversation(), idempotency_key=key)
    again = v3.query_jobs.create(by_conversation(), idempotency_key=key)
    assert again.operation_id == first.operation_id
    other = QueryJobList.InsightsQueryRequest({"query": QueryList.QueryDefinition({"measures": ["Conversation.Count"]})})
    assert refusal(lambda: v3.query_jobs.create(other, idempotency_key=key)) == (422, 20422)
    assert refusal(lambda: v3.query_jobs.create(other, idempotency_key="x")) == (400, 20001)


def test_the_async_client_polls_lists_and_reads(simulator, v3):
    jobs = [v3.query_jobs.create(by_conversation(*orders)) for orders in ORDERS[:2]]
    done = ended(v3, jobs[0])

    async def read():
        async with AsyncTwilioHttpClient(timeout=PATIENCE_SECONDS) as http_client:
            v3 = simulator.client(http_client).insights.v3
            found = await v3.query_jobs(done.operation_id).fetch_async()
            # One page only, since this client fails at a second page: it does not await it.
            listed = await v3.query_jobs.list_async()
            return found, listed, await ResultList(v3, done.operation_id).fetch_async(page_size=100)

    found, listed, page = asyncio.run(read())
    assert (found.status, found.completed_at) == (done.status, done.completed_at)
    assert [job.operation_id for job in listed] == [job.operation_id for job in reversed(jobs)]
    assert page.meta["pageSize"] == len(page.items) == 100


def test_custom_fields_are_created_patched_and_queried(v3):
    mappings = v3.custom_field_mappings
    assert v3.custom_field_mappings_capacity.fetch().measure == {"consumed": 0, "remaining": 3}

    def creation(name):
        source = {"operatorId": OPERATOR, "field": "leadScore"}
        metadata = {"sourceType": "INTELLIGENCE_OPERATOR", "intelligenceOperator": source}
        return CustomFieldMappingList.CustomFieldMappingRequest(
            {"category": "MEASURE", "name": name, "entityMetadata": metadata}
        )

    made = mappings.create(creation("LeadScore"))
    assert made.id.startswith("convinsights_mapping_") and made.updated_at is None
    assert refusal(lambda: mappings.create(creation("LeadScore"))) == (409, 20052)
    mappings.create(creation("Heat"))
    assert [field.name for field in mappings.list(page_size=1)] == ["LeadScore", "Heat"]

    fetched = mappings(made.id).fetch_with_http_info()
    etag = {name.lower(): value for name, value in fetched.headers.items()}["etag"]
    change = CustomFieldMappingList.CustomFieldMappingUpdateRequest(
        {
            "entityMetadata": {
                "sourceType": "INTELLIGENCE_OPERATOR",
                "intelligenceOperator": {"field": "engagement.messages"},
            }
        }
    )
    patched = mappings(made.id).patch(change, if_match=etag)
    assert patched.entity_metadata["intelligenceOperator"]["field"] == "engagement.messages"
    assert refusal(lambda: mappings(made.id).patch(change, if_match=etag)) == (412, 20412)

    names = [measure["name"] for cube in v3.metadata.fetch().cubes for measure in cube["measures"]]
    assert "ConversationSummary.HeatAverage" in names
    query = QueryList.InsightsQueryRequest({"query": {"measures": ["ConversationSummary.HeatAverage"]}})
    assert v3.query.create(query).items[0]["ConversationSummary.HeatAverage"] > 0
