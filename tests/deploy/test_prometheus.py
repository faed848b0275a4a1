"""Checks the alerts, the scrape configurations and the gateway's metrics with Prometheus itself."""

import re
import shutil

import pytest
import yaml

from empty_root import DOMAIN, ask
from files import DEPLOY, ROOT, run
from metrics import LABELS, NAMES, OF_SCRAPES, names_in, unknown_in

ALERTS = DEPLOY / "prometheus/alerts.yml"
RULES = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
QUERY = {"query": {"measures": ["Conversation.Count"], "dimensions": ["Conversation.ConversationStatus"]}}


def test_prometheus_reads_the_gateways_metrics(root):
    _, data, admin = root.serve("http://" + root.simulate())
    for body in (QUERY, QUERY, {"query": "none"}):
        ask(data, f"{DOMAIN}/Query", body)
    status, exposition = ask(admin, "/metrics")
    assert status == 200
    assert run("promtool", "check", "metrics", input=exposition) == ""
    exposed = set(re.findall(r"^# TYPE (\S+)", exposition, re.M))
    assert len(exposed) > 10 and exposed <= NAMES, "the names are read correctly from the code"


def test_the_alerts_pass_their_tests():
    run("promtool", "check", "rules", ALERTS)
    run("promtool", "test", "rules", DEPLOY / "prometheus/alerts.test.yml")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_the_tests_fail_without_any_one_alert(rule, tmp_path):
    rules = [{**other, "expr": "vector(0) > 1"} if other is rule else other for other in RULES]
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump({"groups": [{"name": "silenced", "rules": rules}]}))
    shutil.copy(DEPLOY / "prometheus/alerts.test.yml", tmp_path)
    with pytest.raises(AssertionError, match=rule["alert"]):
        run("promtool", "test", "rules", tmp_path / "alerts.test.yml")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_each_alert_reads_existing_metrics_and_links_the_runbook(rule):
    assert names_in(rule["expr"]) <= NAMES
    assert unknown_in(rule["expr"]) == set()
    told = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    assert told <= OF_SCRAPES.union(*(LABELS[name] for name in names_in(rule["expr"])))
    assert rule["labels"]["severity"] in ("page", "ticket")
    page, anchor = rule["annotations"]["runbook_url"].split("#")
    headings = re.findall(r"^### (\w+)$", (ROOT / page).read_text(), re.M)
    assert rule["alert"] in headings and anchor == rule["alert"].lower()


def test_the_runbook_describes_only_existing_alerts():
    headings = re.findall(r"^### (InsightsGateway\w+)$", (ROOT / "docs/runbook.md").read_text(), re.M)
    assert headings == [rule["alert"] for rule in RULES], "in the same order"


@pytest.mark.parametrize("config", ["compose/prometheus.yml", "prometheus/kubernetes.yml"])
def test_prometheus_accepts_the_configuration(config, tmp_path):
    text = (DEPLOY / config).read_text()
    # The files that it names exist only where it is deployed.
    for file in re.findall(r"credentials_file: (\S+)", text):
        (tmp_path / "token").write_text("token")
        text = text.replace(file, str(tmp_path / "token"))
    # Debian's Prometheus is built without discovery of pods.
    text = text.replace("kubernetes_sd_configs:\n      - role: pod\n", "static_configs:\n      - targets: [pod]\n")
    shutil.copy(ALERTS, tmp_path)
    (tmp_path / "prometheus.yml").write_text(text)
    run("promtool", "check", "config", tmp_path / "prometheus.yml")
    (job,) = (job["job_name"] for job in yaml.safe_load(text)["scrape_configs"])
    assert f'up{{job="{job}"}}' in ALERTS.read_text(), "the name that the alert looks for"
