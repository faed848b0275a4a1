"""Queries of the Conversation Insights API as pandas DataFrames, through insights-gateway. Needs only pandas."""

import json
import os
import urllib.parse
import urllib.request

import pandas

DOMAIN = "/v3/InsightsDomains/Conversations"


def read(url, query, *, page_size=1000):
    """All rows of a query, page by page. `url` is the gateway's; a team's token comes from INSIGHTS_GATEWAY_TOKEN."""
    page = ask(f"{url}{DOMAIN}/Query?pageSize={page_size}", {"query": query})
    rows = page["items"]
    # On the last page the token is absent or null.
    while token := page["meta"].get("nextToken"):
        page = ask(f"{url}{DOMAIN}/Query?{urllib.parse.urlencode({'pageToken': token})}")
        rows += page["items"]
    frame = pandas.DataFrame(rows, columns=[*query.get("dimensions", []), *query.get("measures", [])])
    for dimension in times(url).intersection(frame.columns):
        frame[dimension] = pandas.to_datetime(frame[dimension])
    return frame


def times(url):
    """The names of all time dimensions in the account's metadata, with each grain."""
    cubes = ask(f"{url}{DOMAIN}/Metadata")["cubes"]
    names = {dimension["name"] for cube in cubes for dimension in cube["dimensions"] if dimension["type"] == "time"}
    grains = ("second", "minute", "hour", "day", "week", "month", "quarter", "year")
    return names | {f"{name}.{grain}" for name in names for grain in grains}


def ask(url, body=None):
    headers = {"Content-Type": "application/json"}
    if token := os.environ.get("INSIGHTS_GATEWAY_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body).encode()
    # The gateway waits and retries by itself, until upstream.deadline.
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=120) as answer:
        return json.load(answer)
