"""Query jobs through the gateway, with Twilio's own Python SDK."""

import time

from twilio.rest.insights.v3.result import ResultList

from stack import ROWS
from test_simulator import by_conversation, ended, refusal

JOBS = "/v3/InsightsDomains/Conversations/QueryJobs"


def asked(stack, method, path):
    """The number of such requests that the gateway has sent."""
    received = [(entry["method"], entry["path"].split("?")[0]) for entry in stack.received()]
    return received.count((method, path))


def test_an_identical_submission_gets_the_same_job(stack, client):
    v3 = client.insights.v3
    jobs = [v3.query_jobs.create(by_conversation()) for _ in range(3)]
    assert len({job.operation_id for job in jobs}) == 1
    other = v3.query_jobs.create(by_conversation("ASC"))
    own = v3.query_jobs.create(by_conversation(), idempotency_key="01890a5d-aa0f-7c80-b8e6-0242ac140004")
    assert len({job.operation_id for job in [jobs[0], other, own]}) == 3
    assert asked(stack, "POST", JOBS) == 3


def test_polls_are_answered_from_memory(stack, client):
    v3 = client.insights.v3
    began = time.monotonic()
    job = v3.query_jobs.create(by_conversation())
    done = ended(v3, job)
    for _ in range(20):
        assert v3.query_jobs(job.operation_id).fetch().completed_at == done.completed_at
    # The simulator asks clients to wait at least a second between two polls.
    assert asked(stack, "GET", f"{JOBS}/{job.operation_id}") <= time.monotonic() - began + 1


def test_results_are_asked_for_once(stack, client):
    v3 = client.insights.v3
    done = ended(v3, v3.query_jobs.create(by_conversation()))
    assert done.result_url.startswith(f"{stack.url}{JOBS}/")
    results = ResultList(v3, done.operation_id)
    for _ in range(3):
        first = results.fetch(page_size=200)
        rest = results.fetch(page_size=200, page_token=first.meta["nextToken"])
        assert len(first.items) + len(rest.items) == ROWS
    assert asked(stack, "GET", f"{JOBS}/{done.operation_id}/Results") == 2


def test_a_failed_job_is_not_shared(stack, client):
    stack.script(next_jobs=1, status="FAILED", takes="0s")
    v3 = client.insights.v3
    failed = ended(v3, v3.query_jobs.create(by_conversation()))
    assert failed.error["code"] == 50001
    assert refusal(lambda: ResultList(v3, failed.operation_id).fetch()) == (404, 20404)
    again = v3.query_jobs.create(by_conversation())
    assert again.operation_id != failed.operation_id


def test_a_submission_whose_answer_is_lost_makes_one_job(stack, client):
    stack.script(next=1, path=JOBS, method="POST", drop_answer=True)
    v3 = client.insights.v3
    job = v3.query_jobs.create(by_conversation())
    assert [listed.operation_id for listed in v3.query_jobs.list()] == [job.operation_id]
    assert asked(stack, "POST", JOBS) == 2
