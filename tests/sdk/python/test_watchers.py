"""Upstream calls for one finished query job, for one and for many watchers: directly, and through a gateway.

With `-s` it prints the table of `docs/jobs.md`: `.tools/python/bin/python -m pytest -s tests/sdk/python/test_watchers.py`,
with the binary's path in GATEWAY_BINARY.
"""

import base64
import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from stack import PATIENCE_SECONDS

JOBS = "/v3/InsightsDomains/Conversations/QueryJobs"
QUERY = {"query": {"measures": ["Conversation.Count"]}}
PACE_SECONDS = 1


def ask(url, user, body=None):
    """A request with the simulator's password, which the gateway replaces."""
    credentials = base64.b64encode(f"{user}:secret".encode()).decode()
    headers = {"Authorization": f"Basic {credentials}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, body and json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
        return json.load(answer)


def watch(base, user):
    """Submits a job, polls it until it has ended, and reads its results, like each viewer of a dashboard."""
    job = f"{base}{JOBS}/{ask(base + JOBS, user, QUERY)['operationId']}"
    while True:
        time.sleep(PACE_SECONDS)
        status = ask(job, user)["status"]
        if status not in ("PENDING", "RUNNING"):
            break
    assert status == "COMPLETED"
    assert len(ask(job + "/Results", user)["items"]) == 1


def calls(stack, base, watchers):
    """Upstream calls for this number of watchers: submissions, polls and reads of results."""
    with ThreadPoolExecutor(watchers) as pool:
        # Each watcher has its own account, because the simulator runs only three jobs of one account at a time.
        list(pool.map(lambda number: watch(base, f"SK{number}"), range(watchers)))
    received = [(entry["method"], entry["path"]) for entry in stack.received()]
    submissions = sum(method == "POST" for method, _ in received)
    results = sum(path.endswith("/Results") for _, path in received)
    return submissions, len(received) - submissions - results, results


def shown(counts):
    return f"{sum(counts)} ({' + '.join(map(str, counts))})"


def test_a_finished_job_costs_the_same_for_one_and_for_many(start):
    print("\n| watchers | direct | through the gateway |\n| --- | --- | --- |")
    for watchers in [1, 10, 100]:
        direct, gateway = start(jobs_take="5s"), start(jobs_take="5s")
        alone = calls(direct, direct.upstream, watchers)
        shared = calls(gateway, gateway.url, watchers)
        print(f"| {watchers} | {shown(alone)} | {shown(shared)} |")
        assert (alone[0], alone[2]) == (watchers, watchers) and alone[1] >= 4 * watchers
        # The first poll is due when Twilio says, and then there is at most one a second.
        assert (shared[0], shared[2]) == (1, 1) and shared[1] <= 3
