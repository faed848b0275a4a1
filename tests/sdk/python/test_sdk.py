"""Sends requests with Twilio's own, unmodified Python SDK through the gateway."""

import asyncio
import hashlib
import json

import pytest
from twilio.base.exceptions import TwilioRestException
from twilio.http.async_http_client import AsyncTwilioHttpClient

from queries import CALLER, by_conversation, by_status, cache_status, client_of, headers, request
from stack import ACCOUNT_KEY, PATIENCE_SECONDS, ROWS

TOKEN = "igw_a-token-that-only-this-test-knows"
TEAM = f"""
[teams.dashboards]
account = "main"
token_sha256 = ["{hashlib.sha256(TOKEN.encode()).hexdigest()}"]
"""


def refusal(call):
    """The status and code of the exception that an application would catch."""
    with pytest.raises(TwilioRestException) as caught:
        call()
    assert caught.value.msg, "an SDK user sees why"
    return caught.value.status, caught.value.code


def ids(page):
    return [row["Conversation.ConversationId"] for row in page.items]


def walk(client, page_size):
    """All pages of the query, first to last."""
    query = client.insights.v3.query
    pages = [query.create(by_conversation(), page_size=page_size)]
    while token := pages[-1].meta.get("nextToken"):
        pages.append(query.fetch(page_token=token))
    return pages


def test_metadata_is_fetched_and_cached(stack, client):
    first = client.insights.v3.metadata.fetch_with_http_info()
    again = client.insights.v3.metadata.fetch_with_http_info()
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.data.domain == "Conversations"
    assert "Conversation" in [cube["name"] for cube in first.data.cubes]
    assert again.data.cubes == first.data.cubes
    assert "fwd=uri-miss" in cache_status(first) and "hit" in cache_status(again)
    assert len(stack.received()) == 1


def test_a_repeated_query_is_a_hit(stack, client):
    query = client.insights.v3.query
    first = query.create_with_http_info(by_status(), page_size=20)
    again = query.create_with_http_info(by_status(), page_size=20)
    assert sum(row["Conversation.Count"] for row in first.data.items) > 0
    assert again.data.items == first.data.items
    assert "detail=miss" in cache_status(first) and "detail=hit" in cache_status(again)
    assert "age" in headers(again) and headers(again)["etag"] == headers(first)["etag"]
    assert [entry["path"] for entry in stack.received()] == [
        "/v3/InsightsDomains/Conversations/Query?pageSize=20",
    ]


def test_pages_together_hold_every_row_once(stack, client):
    pages = walk(client, page_size=50)
    assert [len(page.items) for page in pages] == [50, 50, 50, 50, 30]
    rows = [row for page in pages for row in ids(page)]
    assert len(rows) == ROWS == len(set(rows))
    assert rows == sorted(rows)

    once = len(stack.received())
    assert [ids(page) for page in walk(client, page_size=50)] == [ids(page) for page in pages]
    assert len(stack.received()) == once, "the second reading of all pages is answered from the cache"

    back = client.insights.v3.query.fetch(page_token=pages[1].meta["previousToken"])
    assert ids(back) == ids(pages[0])


def test_pages_do_not_depend_on_their_size(client):
    by_seven, at_once = walk(client, page_size=7), walk(client, page_size=1000)
    assert (len(by_seven), len(at_once)) == (33, 1)
    assert [row for page in by_seven for row in ids(page)] == ids(at_once[0])


def test_twilios_errors_arrive_unchanged(stack, client):
    unknown = request(measures=["Conversation.Count"], dimensions=["Conversation.ShoeSize"])
    assert refusal(lambda: client.insights.v3.query.create(unknown)) == (400, 20001)
    assert stack.received()[-1]["status"] == 400


def test_the_sdk_reads_the_gateways_errors_like_twilios(stack, client):
    assert refusal(lambda: client.insights.v3.query.create(request_without_query())) == (400, 20400)
    assert refusal(lambda: client.insights.v1.calls("CA" + "0" * 32).fetch()) == (404, 20404)
    assert stack.received() == [], "neither request was sent to Twilio"


def request_without_query():
    incomplete = request()
    incomplete.query = None
    return incomplete


def test_a_team_over_its_limit_gets_a_429(start):
    stack = start(more_config=TEAM + 'requests = "1/h"\n')
    client = client_of(stack.url, "dashboards", TOKEN)
    assert client.insights.v3.metadata.fetch().domain == "Conversations"
    assert refusal(client.insights.v3.metadata.fetch) == (429, 20429)


def test_a_long_wait_after_twilios_429_is_refused_at_once(start):
    stack = start(more_config='[upstream]\ndeadline = "2s"\n')
    stack.script(next=1, status=429, headers={"x-ratelimit-reset": "120"})
    client = client_of(stack.url)
    assert refusal(client.insights.v3.metadata.fetch) == (429, 20429)
    # The account is paused now: the gateway sends nothing until Twilio accepts requests again.
    assert refusal(lambda: client.insights.v3.query.create(by_status())) == (429, 20429)
    assert [entry["status"] for entry in stack.received()] == [429]


def test_a_temporary_failure_is_retried(stack, client):
    stack.script(next=1, status=503)
    answer = client.insights.v3.query.create_with_http_info(by_status())
    assert answer.status_code == 200 and answer.data.items
    assert [entry["status"] for entry in stack.received()] == [503, 200]


def test_a_team_signs_in_with_its_token(start):
    stack = start(more_config=TEAM)
    client = client_of(stack.url, "dashboards", TOKEN)
    assert client.insights.v3.query.create(by_status()).items
    for user, password in [("dashboards", TOKEN + "x"), ("exports", TOKEN), ("dashboards", "secret")]:
        stranger = client_of(stack.url, user, password)
        assert refusal(lambda: stranger.insights.v3.query.create(by_status())) == (401, 20003)
    assert len(stack.received()) == 1


def test_credentials_are_not_passed_between_client_and_twilio(start):
    stack = start(more_config=TEAM)
    client = client_of(stack.url, "dashboards", TOKEN)
    client.insights.v3.metadata.fetch()
    walk(client, page_size=100)
    with pytest.raises(TwilioRestException):
        client_of(stack.url, *CALLER).insights.v3.metadata.fetch()

    received = stack.received()
    assert {entry["authorization"]["user"] for entry in received} == {ACCOUNT_KEY}
    assert not {"x-twilio-client", "cookie", "forwarded", "x-forwarded-for"} & {
        header for entry in received for header in entry["headers"]
    }
    for secret in ("dashboards", TOKEN, *CALLER):
        assert secret not in json.dumps(received)
    for secret in (TOKEN, CALLER[1]):
        assert secret not in stack.log.read_text()


class JsonAsyncHttpClient(AsyncTwilioHttpClient):
    """The SDK's asynchronous client writes every body as a form, whatever its content type. Twilio's API
    for Conversations does not read that either. An application that posts with that client needs this class."""

    async def request(self, method, url, params=None, data=None, headers=None, **rest):
        if data and headers.get("Content-Type") == "application/json":
            data = json.dumps(data)
        return await super().request(method, url, params, data, headers, **rest)


def test_the_unmodified_async_client_can_read(stack):
    async def fetch():
        async with AsyncTwilioHttpClient(timeout=PATIENCE_SECONDS) as http_client:
            client = client_of(stack.url, http_client=http_client)
            with pytest.raises(TwilioRestException) as caught:
                await client.insights.v1.calls("CA" + "0" * 32).fetch_async()
            return await client.insights.v3.metadata.fetch_async(), caught.value

    metadata, error = asyncio.run(fetch())
    assert metadata.domain == "Conversations" and metadata.cubes
    assert (error.status, error.code) == (404, 20404)


def test_async_clients_share_one_call(stack):
    # Long enough that all clients have sent their request, even on a busy machine.
    stack.script(next=1, delay="3s")

    async def ask():
        async with JsonAsyncHttpClient(timeout=PATIENCE_SECONDS) as http_client:
            query = client_of(stack.url, http_client=http_client).insights.v3.query
            together = await asyncio.gather(*(query.create_with_http_info_async(by_status()) for _ in range(8)))
            first = await query.create_async(by_conversation(), page_size=200)
            rest = await query.fetch_async(page_token=first.meta["nextToken"])
            with pytest.raises(TwilioRestException) as caught:
                await query.create_async(request_without_query())
            return together, first, rest, caught.value

    together, first, rest, error = asyncio.run(ask())
    assert all(answer.data.items == together[0].data.items for answer in together)
    assert sorted("collapsed" in cache_status(answer) for answer in together) == [False] + [True] * 7
    assert len(set(ids(first) + ids(rest))) == ROWS
    assert (error.status, error.code) == (400, 20400)
    assert len(stack.received()) == 3
