"""Checks the dashboard, and that a Prometheus with the configuration of the compose file answers each of its queries.
This Prometheus scrapes a gateway."""

import hashlib
import json
import os
import re
import subprocess
import urllib.parse
from pathlib import Path

import pytest

from empty_root import DOMAIN, ask, wait_for
from files import DEPLOY
from metrics import NAMES, names_in, unknown_in

DASHBOARD = json.loads((DEPLOY / "grafana/insights-gateway.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
QUERY = {"query": {"measures": ["Conversation.Count"], "dimensions": ["Conversation.ConversationStatus"]}}
LISTENING = "0A"
# Metrics for which a healthy gateway on its own has no series.
QUIET = ("errors_total", "retries_total", 'status=~"4..|5.."', "gateway_shared_", "gateway_replicas", 'outcome="shared"')


def test_panels_have_titles_positions_and_queries():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
    for panel in PANELS:
        assert panel["title"] and panel["targets"]
        for source in (panel["datasource"], *(target["datasource"] for target in panel["targets"])):
            assert source["uid"] == "${datasource}", "the data source may have any name"


def test_every_metric_exists():
    assert set().union(*map(names_in, EXPRESSIONS)) <= NAMES
    for variable in VARIABLES.values():
        assert names_in(variable.get("definition", "")) <= NAMES


def test_every_label_exists():
    assert set().union(*map(unknown_in, EXPRESSIONS)) == set()
    assert unknown_in('sum by (tean) (insights_gateway_requests_total{outcom="hit", outcome=~"hit|mis"})') == {
        "insights_gateway_requests_total has no outcom",
        "outcome is never mis",
        "nothing has tean",
    }
    for panel in PANELS:
        for target in panel["targets"]:
            named = set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")))
            kept = re.search(r"\bby \(([^)]*)\)", target["expr"])
            assert named <= (set(re.findall(r"\w+", kept[1])) if kept else named), f"{panel['title']}: its legend has no such label"


def test_every_variable_is_defined():
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD)))
    assert used - {"__rate_interval", "__all"} <= set(VARIABLES)


class Prometheus:
    """Starts a real Prometheus."""

    def __init__(self, folder, config):
        (folder / "prometheus.yml").write_text(config)
        self._log = folder / "prometheus.log"
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                "--web.listen-address=127.0.0.1:0",
            ],
            stderr=self._log.open("w"),
        )
        self.address = f"127.0.0.1:{wait_for(self._port, 'its port', self._log.read_text)}"
        wait_for(lambda: ask(self.address, "/-/ready")[0] == 200, "it to be ready", self._log.read_text)

    def _port(self):
        """The port of Prometheus. Prometheus does not print it, so ask the kernel."""
        assert self._process.poll() is None, self._log.read_text()
        about = Path(f"/proc/{self._process.pid}")
        sockets = set()
        for descriptor in (about / "fd").iterdir():
            try:
                sockets.add(os.readlink(descriptor))
            except FileNotFoundError:
                pass
        for line in (about / "net/tcp").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == LISTENING and f"socket:[{inode}]" in sockets:
                return int(local.split(":")[1], 16)
        return None

    def ask(self, path, **parameters):
        status, answer = ask(self.address, f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        answer = json.loads(answer)
        assert status == 200 and answer["status"] == "success", answer
        return answer["data"]

    def value(self, expression):
        """The result of the query at this moment."""
        return self.ask("query", query=expression)["result"]

    def close(self):
        self._process.terminate()
        self._process.wait()


@pytest.fixture
def watched(root, tmp_path):
    """A gateway that gets requests, and a Prometheus with the compose file's configuration that scrapes it."""
    # The same secrets and metrics token, but other addresses and shorter intervals.
    config = (DEPLOY / "compose/gateway/gateway.toml").read_text()
    root.write("/etc/insights-gateway/gateway.toml", config)
    root.write("/run/secrets/twilio_api_secret", (DEPLOY / "compose/secrets/twilio_api_secret").read_text())
    root.write("/var/lib/insights-gateway/.keep", "")
    (root.path / "var/lib/insights-gateway").chmod(0o777)
    (tmp_path / "token").write_text("the-token-of-this-test")
    wanted = {"INSIGHTS_GATEWAY_ADMIN__TOKEN_SHA256": hashlib.sha256(b"the-token-of-this-test").hexdigest()}
    arguments = ["--config", "/etc/insights-gateway/gateway.toml"]
    _, data, admin = root.serve("http://" + root.simulate(), *arguments, environment=wanted)
    text = (DEPLOY / "compose/prometheus.yml").read_text()
    for old, new in {
        "15s": "500ms",
        "alerts.yml": str(DEPLOY / "prometheus/alerts.yml"),
        "/run/secrets/metrics_token": str(tmp_path / "token"),
        "gateway:9090": admin,
    }.items():
        assert old in text
        text = text.replace(old, new)
    prometheus = Prometheus(tmp_path, text)
    yield data, prometheus
    prometheus.close()


def test_prometheus_answers_every_panel(watched):
    data, prometheus = watched
    wait_for(lambda: prometheus.value('up{job="insights-gateway"} == 1'), "a scrape with the token")
    for _ in range(3):
        assert ask(data, f"{DOMAIN}/Metadata")[0] == 200
        assert ask(data, f"{DOMAIN}/Query", QUERY)[0] == 200
    # Prometheus must scrape a counter twice. The hits of the query are the last counter that appears.
    seen = 'count_over_time(insights_gateway_requests_total{operation="query",outcome="hit"}[1m]) >= 2'
    wait_for(lambda: prometheus.value(seen), "two scrapes after the requests")
    for expression in EXPRESSIONS:
        expression = expression.replace("$__rate_interval", "1m")
        expression = re.sub(r"\$(\w+)", lambda match: ".*" if match[1] in VARIABLES else match[0], expression)
        answer = prometheus.value(expression)
        assert answer or any(word in expression for word in QUIET), f"nothing to show for {expression}"
    # The alert on a gateway that is down was pending if it was evaluated before the first scrape.
    rules = lambda: [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    well = lambda: {(rule["health"], rule["state"]) for rule in rules()} == {("ok", "inactive")}
    wait_for(well, "every rule to be evaluated and well", lambda: str(rules()))
