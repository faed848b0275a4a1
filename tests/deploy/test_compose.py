"""Checks the compose file with compose itself, and the configuration that it mounts with the gateway."""

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from files import DEPLOY, run, tool


@pytest.fixture(scope="module")
def deploy(tmp_path_factory):
    """A copy of the folder, so that the secrets which the test creates are deleted with it."""
    return Path(shutil.copytree(DEPLOY, tmp_path_factory.mktemp("compose") / "deploy", ignore=what_prepare_makes))


def what_prepare_makes(folder, names):
    return {name for name in names if name in (".env", "metrics_token")}


def compose(deploy):
    return [tool("docker-compose"), "-f", deploy / "compose/compose.yaml", "config", "--format", "json"]


@pytest.fixture(scope="module")
def project(deploy):
    unprepared = subprocess.run(compose(deploy), capture_output=True, text=True, timeout=120)
    assert unprepared.returncode != 0 and "deploy/compose/prepare" in unprepared.stderr, unprepared
    run(deploy / "compose/prepare")
    return json.loads(run(*compose(deploy)))


def test_every_mounted_file_exists(project):
    sources = [Path(secret["file"]) for secret in project["secrets"].values()]
    for service in project["services"].values():
        sources += [Path(volume["source"]) for volume in service.get("volumes", []) if volume["type"] == "bind"]
        if "build" in service:
            sources.append(Path(service["build"]["context"], service["build"]["dockerfile"]))
    assert len(sources) > 8 and all(source.exists() for source in sources), sources


def test_ports_are_local_and_services_run_with_least_privilege(project):
    for name, service in project["services"].items():
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", [])), name
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert re.search(r":\d[\w.-]*$|:v\d[\w.-]*$", service["image"]), f"{name}: a version, not latest"


def test_the_gateway_accepts_the_mounted_configuration(project, root):
    for volume in project["services"]["gateway"]["volumes"]:
        if volume["type"] == "bind":
            for file in Path(volume["source"]).iterdir():
                root.write(f"{volume['target']}/{file.name}", file.read_text())
    for secret in project["services"]["gateway"]["secrets"]:
        root.write(secret["target"], Path(project["secrets"][secret["source"]]["file"]).read_text())
    gateway = project["services"]["gateway"]
    checked = root.run("check", *gateway["command"][1:], environment=gateway["environment"])
    assert checked.returncode == 0, checked.stderr


def test_prometheus_has_the_gateways_token_which_is_generated(project, deploy):
    secrets = {name: Path(secret["file"]).read_text().strip() for name, secret in project["secrets"].items()}
    assert re.fullmatch("[0-9a-f]{64}", secrets["metrics_token"])
    wanted = project["services"]["gateway"]["environment"]["INSIGHTS_GATEWAY_ADMIN__TOKEN_SHA256"]
    assert hashlib.sha256(secrets["metrics_token"].encode()).hexdigest() == wanted
    again = run(deploy / "compose/prepare", "--again")
    assert "metrics_token" in again and (deploy / "compose/.env").stat().st_mode & 0o077 == 0
    assert wanted not in (deploy / "compose/.env").read_text()


def test_grafana_has_no_sign_in(project):
    environment = project["services"]["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert environment["GF_AUTH_BASIC_ENABLED"] == "false"
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"


def test_grafana_finds_its_data_source_and_its_dashboard(project):
    mounted = {volume["target"]: Path(volume["source"]) for volume in project["services"]["grafana"]["volumes"]}
    home = project["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert json.loads(mounted[home].read_text())["uid"] == "insights-gateway"
    provider = mounted["/etc/grafana/provisioning/dashboards/dashboards.yaml"].read_text()
    assert f"path: {Path(home).parent}\n" in provider
    source = mounted["/etc/grafana/provisioning/datasources/datasource.yaml"].read_text()
    assert "url: http://prometheus:9090\n" in source and "prometheus" in project["services"]
