"""The recipes of docs/recipes, each with its tool, against a demo. Grafana itself is not available here. Instead the tests
send what its data source would send for the provisioned files, and evaluate its selectors with another implementation."""

import contextlib
import csv
import json
import os
import re
import subprocess
import sys
import urllib.parse
import urllib.request
from datetime import UTC, datetime, timedelta

import gjson
import pytest
import yaml

from empty_root import ACCOUNT, BINARY, DOMAIN, PATIENCE_SECONDS, ask, parsed, wait_for
from files import DEPLOY, ROOT, run

RECIPES = DEPLOY / "recipes"
BY_NAME = {"measures": ["Conversation.Count"], "dimensions": ["Conversation.ConversationName"]}


def address(url):
    return url.removeprefix("http://")


def named(folder):
    """A folder with the binary under its name, for scripts that call it."""
    (folder / "bin").mkdir()
    (folder / "bin/insights-gateway").symlink_to(BINARY)
    return f"{folder / 'bin'}:{os.environ['PATH']}"


def test_every_recipe_has_a_page_that_names_its_files():
    pages = {path.stem for path in (ROOT / "docs/recipes").glob("*.md")} - {"README"}
    assert pages == {path.name for path in RECIPES.iterdir()}
    for folder in RECIPES.iterdir():
        page = (ROOT / f"docs/recipes/{folder.name}.md").read_text()
        for file in folder.glob("[!_]*"):
            assert f"](../../deploy/recipes/{folder.name}/{file.name})" in page, file


# --- pandas


def test_pandas_reads_all_pages(demo, monkeypatch):
    monkeypatch.syspath_prepend(RECIPES / "pandas")
    import insights

    frame = insights.read(demo.gateway, BY_NAME, page_size=50)
    asked = run(BINARY, "query", "--url", demo.gateway, "--all", "--format=json", "--page-size=50",
                "--measure=Conversation.Count", "--dimension=Conversation.ConversationName")
    assert frame.to_dict("records") == json.loads(asked) and len(frame) > 100
    days = insights.read(demo.gateway, {"measures": ["Conversation.Count"], "dimensions": ["Conversation.CreatedDate.day"]})
    assert days["Conversation.CreatedDate.day"].dtype.kind == "M" and days["Conversation.Count"].sum() == 5000
    # An empty result has its columns too.
    nothing = {**BY_NAME, "filters": [{"op": "AND", "expressions": [{"op": "EQ", "field": "Conversation.ConversationName", "values": ["no such"]}]}]}
    assert list(insights.read(demo.gateway, nothing).columns) == [*BY_NAME["dimensions"], *BY_NAME["measures"]]


def test_the_example_for_pandas_prints_weeks(demo):
    said = run(sys.executable, RECIPES / "pandas/example.py", env={"INSIGHTS_GATEWAY_URL": demo.gateway, "PYTHONDONTWRITEBYTECODE": "1"})
    assert "CLOSED" in said and len(said.splitlines()) > 10


# --- export


def test_the_export_is_complete_or_does_not_exist(demo, tmp_path):
    reports = tmp_path / "reports"
    reports.mkdir()
    environment = {"PATH": named(tmp_path), "INSIGHTS_GATEWAY_SERVER__LISTEN": address(demo.gateway)}
    before = datetime.now(UTC).date()
    run(RECIPES / "export/insights-export", reports, env=environment)
    (file,) = reports.iterdir()
    assert file.stem in {str(day - timedelta(days=1)) for day in (before, datetime.now(UTC).date())}
    with file.open() as lines:
        rows = list(csv.DictReader(lines))
    assert rows and list(rows[0]) == ["Conversation.CreatedDate.hour", "Conversation.ConversationStatus", "Conversation.Count"]
    assert {row["Conversation.CreatedDate.hour"][:10] for row in rows} == {file.stem}

    file.unlink()
    nowhere = {**environment, "INSIGHTS_GATEWAY_SERVER__LISTEN": "127.0.0.1:1"}
    failed = subprocess.run([RECIPES / "export/insights-export", reports], env=nowhere, capture_output=True, text=True)
    assert failed.returncode == 1 and "127.0.0.1:1" in failed.stderr
    assert not list(reports.iterdir())


def test_the_crontab_has_a_time_and_a_user():
    entries = [line for line in (RECIPES / "export/insights-export.cron").read_text().splitlines() if line[0].isdigit()]
    (entry,) = entries
    assert re.fullmatch(r"[\d*]+ [\d*]+ \* \* \* \w+ /usr/local/bin/insights-export /\S+", entry)


# --- journald and jq


@pytest.fixture
def log(demo):
    """Lines as `journalctl -o cat` prints them: hits, a miss, a refusal by the gateway, and something else."""
    gateway = address(demo.gateway)
    for _ in range(3):
        assert ask(gateway, f"{DOMAIN}/Query", {"query": BY_NAME})[0] == 200
    assert ask(gateway, "/v3/InsightsDomains/Nothing")[0] == 404
    wait_for(lambda: demo.log.read_text().count("insights_gateway::access") >= 4, "access lines", demo.log.read_text)
    return demo.log


def jq(script, flags, log):
    return [line.split("\t") for line in run("jq", flags, "-f", RECIPES / "journald" / script, log).splitlines()]


def test_jq_counts_outcomes(log):
    assert jq("outcomes.jq", "-rs", log) == [["", "refused", "1"], ["local", "hit", "2"], ["local", "miss", "1"]]


def test_jq_lists_refusals(log):
    ((when, status, _, reason, request),) = jq("refused.jq", "-r", log)
    assert when.endswith("Z") and (status, reason) == ("404", "not_found") and request


def test_jq_finds_slow_requests(log, tmp_path):
    assert jq("slow.jq", "-r", log) == []
    slow = tmp_path / "slow.log"
    lines = map(parsed, log.read_text().splitlines())
    slow.write_text("\n".join(json.dumps({**line, "duration_ms": 1500}) for line in lines if line.get("outcome") == "miss"))
    ((_, team, operation, outcome, duration, *_),) = jq("slow.jq", "-r", slow)
    assert (team, operation, outcome, duration) == ("local", "query", "miss", "1500")


# --- A corporate proxy


@contextlib.contextmanager
def serving(folder, environment, *arguments):
    """A gateway with these settings, by default without teams, and its two addresses."""
    log = folder / "gateway.log"
    ports = ["--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--set=log.format=json"]
    with log.open("w") as output:
        gateway = subprocess.Popen([BINARY, "serve", *ports, *arguments], env={**ACCOUNT, **environment}, stderr=output)

    def look():
        assert gateway.poll() is None, log.read_text()
        entries = map(parsed, log.read_text().split("\n")[:-1])
        return next((entry for entry in entries if entry.get("message") == "serving"), None)

    try:
        entry = wait_for(look, "a gateway", log.read_text)
        yield entry["data"], entry["admin"]
    finally:
        gateway.terminate()
        assert gateway.wait(PATIENCE_SECONDS) == 0


def test_calls_go_through_a_proxy_with_a_password(demo, tmp_path):
    port, said, password = tmp_path / "port", tmp_path / "proxy.log", tmp_path / "password"
    password.write_text("let-me-out")
    password.chmod(0o600)
    with said.open("w") as output:
        proxy = subprocess.Popen(
            [sys.executable, "-m", "proxy", "--hostname=127.0.0.1", "--port=0", f"--port-file={port}", "--num-workers=1"]
            + ["--num-acceptors=1", f"--data-dir={tmp_path}", "--basic-auth=insights:let-me-out", "--timeout=20"],
            stdout=output,
            stderr=output,
        )
    try:
        found = wait_for(lambda: port.exists() and port.read_text().strip(), "the proxy", said.read_text)
        config = tmp_path / "gateway.toml"
        recipe = (RECIPES / "proxy/gateway.toml").read_text()
        config.write_text(recipe.replace("egress.example:3128", f"127.0.0.1:{found}").replace("/run/secrets/egress_password", str(password)))
        with serving(tmp_path, {}, "--config", config, "--upstream", demo.simulator) as (data, _):
            status, metadata = ask(data, f"{DOMAIN}/Metadata")
            assert status == 200 and "Conversation.Count" in metadata
        wait_for(lambda: f"CONNECT {address(demo.simulator)}" in said.read_text(), "the tunnel", said.read_text)
        # With a wrong password no call reaches the upstream.
        password.write_text("wrong")
        with serving(tmp_path, {}, "--config", config, "--upstream", demo.simulator) as (data, _):
            status, body = ask(data, f"{DOMAIN}/Metadata")
            assert status == 502 and "upstream_unreachable" in body and "407" in body
    finally:
        proxy.terminate()
        proxy.wait(PATIENCE_SECONDS)


def test_the_configurations_of_recipes_pass_check(tmp_path):
    for config in RECIPES.glob("*/gateway.toml"):
        checked = subprocess.run([BINARY, "check", "--without-secrets", "--config", config], env=ACCOUNT, capture_output=True, text=True)
        assert (checked.returncode, checked.stderr) == (0, "OK\n"), config


# --- Grafana

DASHBOARD = json.loads((RECIPES / "grafana/conversations.json").read_text())
TARGETS = {panel["title"]: target for panel in DASHBOARD["panels"] for target in panel["targets"]}


def infinity(base, target, variables, cursor=None):
    """The request of the data source for a panel, and the answer."""

    def filled(text):
        return re.sub(r"\$\{([^}]+)\}", lambda found: variables[found[1]], text)

    options = target["url_options"]
    parameters = [(pair["key"], filled(pair["value"])) for pair in options["params"]]
    if cursor:
        assert target["pagination_param_cursor_field_type"] == "query"
        parameters.append((target["pagination_param_cursor_field_name"], cursor))
    request = urllib.request.Request(
        f"{base}{filled(target['url'])}?{urllib.parse.urlencode(parameters)}",
        data=filled(options["data"]).encode() if "data" in options else None,
        headers={"Content-Type": options.get("body_content_type", "application/json")},
        method=options["method"],
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
        return json.load(answer), answer.headers


def rows(target, page):
    found = gjson.get(page, target["root_selector"])
    return [{column["text"]: gjson.get(row, column["selector"]) for column in target["columns"]} for row in found]


def test_grafanas_panels_get_their_rows_and_share_pages(demo):
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    written = "%Y-%m-%dT%H:%M:%S.000Z"
    variables = {"__from:date:iso": (today - timedelta(days=30)).strftime(written), "__to:date:iso": today.strftime(written)}
    # Whole days, so that later refreshes send the same query.
    assert DASHBOARD["time"] == {"from": "now-30d/d", "to": "now/d"}
    for title in ("Conversations a day", "By status"):
        page, headers = infinity(demo.gateway, TARGETS[title], variables)
        found = rows(TARGETS[title], page)
        assert len(found) >= 3 and all(value is not None for row in found for value in row.values()), title
        assert "nextToken" not in page["meta"]
        assert "detail=miss" in headers["Cache-Status"]
        _, headers = infinity(demo.gateway, TARGETS[title], variables)
        assert "detail=hit" in headers["Cache-Status"]


def test_grafanas_cursor_ends_where_there_is_no_token():
    selector = TARGETS["Results of a query job, all pages"]["pagination_param_cursor_extraction_path"]
    assert gjson.get({"meta": {"nextToken": "a/+="}}, selector) == "a/+="
    # A plain path would be an error here. null is no text either.
    assert not gjson.get({"meta": {"key": "items"}}, selector)
    assert not gjson.get({"meta": {"key": "items", "nextToken": None}}, selector)


def test_grafana_walks_the_results_of_a_job(demo):
    target = TARGETS["Results of a query job, all pages"]
    by_id = {"query": {"measures": ["Conversation.Count"], "dimensions": ["Conversation.ConversationId"]}}
    status, job = ask(address(demo.gateway), f"{DOMAIN}/QueryJobs", by_id)
    assert status == 202
    operation = json.loads(job)["operationId"]
    request = urllib.request.Request(
        f"{demo.simulator}/_simulator/jobs/{operation}", data=b'{"status":"COMPLETED"}', method="PUT"
    )
    urllib.request.urlopen(request, timeout=PATIENCE_SECONDS).close()
    found, cursor, pages = [], None, 0
    while pages == 0 or cursor:
        assert pages <= target["pagination_max_pages"]
        page, _ = infinity(demo.gateway, target, {"job": operation}, cursor)
        found += gjson.get(page, target["root_selector"])
        cursor, pages = gjson.get(page, target["pagination_param_cursor_extraction_path"]), pages + 1
    assert (len(found), pages) == (5000, 5)
    assert len({row["Conversation.ConversationId"] for row in found}) == 5000


def test_grafanas_files_fit_together():
    (source,) = yaml.safe_load((RECIPES / "grafana/datasource.yaml").read_text())["datasources"]
    assert source["jsonData"]["allowedHosts"] == [source["url"]]
    kinds = {source["type"], DASHBOARD["templating"]["list"][0]["query"]}
    kinds |= {target["datasource"]["type"] for target in TARGETS.values()}
    assert kinds == {"yesoreyeram-infinity-datasource"}
    for target in TARGETS.values():
        # Paging, root and columns then work in the plugin's server, which alerts need too.
        assert target["parser"] == "backend"
        if "pagination_mode" in target:
            # The plugin repeats the method for each page, and Twilio answers each POST with the first page.
            assert target["url_options"]["method"] == "GET"
