"""The compose file, by compose itself, and the configuration that it mounts, by the gateway."""

import hashlib
import json
import re
import tomllib
from pathlib import Path

import pytest

from files import DEPLOY, run, tool

COMPOSE = DEPLOY / "compose/compose.yaml"


@pytest.fixture(scope="module")
def project():
    return json.loads(run(tool("docker-compose"), "-f", COMPOSE, "config", "--format", "json"))


def test_everything_that_is_mounted_is_there(project):
    sources = [Path(secret["file"]) for secret in project["secrets"].values()]
    for service in project["services"].values():
        sources += [Path(volume["source"]) for volume in service.get("volumes", []) if volume["type"] == "bind"]
        if "build" in service:
            sources.append(Path(service["build"]["context"], service["build"]["dockerfile"]))
    assert len(sources) > 8 and all(source.exists() for source in sources), sources


def test_nobody_is_let_in_from_elsewhere_and_nothing_is_allowed_to_more_than_it_needs(project):
    for name, service in project["services"].items():
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", [])), name
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert re.search(r":\d[\w.-]*$|:v\d[\w.-]*$", service["image"]), f"{name}: a version, not latest"


def test_the_gateways_configuration_is_right_where_it_is_mounted(project, root):
    for volume in project["services"]["gateway"]["volumes"]:
        if volume["type"] == "bind":
            for file in Path(volume["source"]).iterdir():
                root.write(f"{volume['target']}/{file.name}", file.read_text())
    for secret in project["services"]["gateway"]["secrets"]:
        root.write(secret["target"], Path(project["secrets"][secret["source"]]["file"]).read_text())
    arguments = project["services"]["gateway"]["command"]
    checked = root.run("check", *arguments[1:])
    assert checked.returncode == 0, checked.stderr


def test_prometheus_has_the_token_that_the_gateway_wants():
    config = tomllib.loads((DEPLOY / "compose/gateway/gateway.toml").read_text())
    token = (DEPLOY / "compose/secrets/metrics_token").read_text().strip()
    assert hashlib.sha256(token.encode()).hexdigest() == config["admin"]["token_sha256"]


def test_grafana_finds_its_data_source_and_its_dashboard(project):
    mounted = {volume["target"]: Path(volume["source"]) for volume in project["services"]["grafana"]["volumes"]}
    home = project["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert json.loads(mounted[home].read_text())["uid"] == "insights-gateway"
    provider = mounted["/etc/grafana/provisioning/dashboards/dashboards.yaml"].read_text()
    assert f"path: {Path(home).parent}\n" in provider
    source = mounted["/etc/grafana/provisioning/datasources/datasource.yaml"].read_text()
    assert "url: http://prometheus:9090\n" in source and "prometheus" in project["services"]
