"""Checks the compose files with compose itself, and the configuration that they mount with the gateway. Starts the balancer
in front of gateways."""

import hashlib
import json
import re
import shutil
import socket
import subprocess
from base64 import b64decode
from pathlib import Path

import pytest

from empty_root import DOMAIN, ask, wait_for
from files import DEPLOY, run, tool


@pytest.fixture(scope="module")
def deploy(tmp_path_factory):
    """A copy of the folder, so that the secrets which the test creates are deleted with it."""
    return Path(shutil.copytree(DEPLOY, tmp_path_factory.mktemp("compose") / "deploy", ignore=what_prepare_makes))


def what_prepare_makes(folder, names):
    return {name for name in names if name in (".env", "metrics_token", "seal")}


def compose(deploy, *more):
    files = [option for name in ("compose.yaml", *more) for option in ("-f", deploy / "compose" / name)]
    return [tool("docker-compose"), *files, "config", "--format", "json"]


@pytest.fixture(scope="module")
def alone(deploy):
    unprepared = subprocess.run(compose(deploy), capture_output=True, text=True, timeout=120)
    assert unprepared.returncode != 0 and "deploy/compose/prepare" in unprepared.stderr, unprepared
    run(deploy / "compose/prepare")
    return json.loads(run(*compose(deploy)))


@pytest.fixture(scope="module")
def replicas(deploy, alone):
    return json.loads(run(*compose(deploy, "replicas.yaml")))


@pytest.fixture(scope="module", params=["alone", "replicas"])
def project(request):
    return request.getfixturevalue(request.param)


def gateways(project):
    return [service for name, service in project["services"].items() if name.startswith("gateway")]


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


def test_the_gateways_accept_the_mounted_configuration(project, root):
    for gateway in gateways(project):
        for volume in gateway["volumes"]:
            if volume["type"] == "bind":
                for file in Path(volume["source"]).iterdir():
                    root.write(f"{volume['target']}/{file.name}", file.read_text())
        for secret in gateway["secrets"]:
            root.write(secret["target"], Path(project["secrets"][secret["source"]]["file"]).read_text())
        checked = root.run("check", *gateway["command"][1:], environment=gateway["environment"])
        assert checked.returncode == 0, checked.stderr


def test_the_replicas_differ_only_in_what_cannot_be_shared(replicas):
    first, second = gateways(replicas)
    only_one_may = ("ports", "volumes", "build", "pull_policy")
    assert [{k: v for k, v in gateway.items() if k not in only_one_may} for gateway in (first, second)] == [
        {k: v for k, v in first.items() if k not in only_one_may}
    ] * 2
    folders = [volume["source"] for gateway in (first, second) for volume in gateway["volumes"] if volume["type"] == "volume"]
    assert len(set(folders)) == 2
    shared = first["environment"]
    assert shared["INSIGHTS_GATEWAY_SHARED__REPLICAS"] == "2"
    store = re.fullmatch(r"redis://(\w+):6379", shared["INSIGHTS_GATEWAY_SHARED__URL"])[1]
    # The gateways reach the store, and nothing else does.
    (network,) = replicas["services"][store]["networks"]
    assert replicas["networks"][network]["internal"] and "ports" not in replicas["services"][store]
    reaching = {name for name, service in replicas["services"].items() if network in (service["networks"] or {})}
    assert reaching == {store, "gateway", "gateway-2"}
    assert len(b64decode(Path(replicas["secrets"]["seal"]["file"]).read_text(), validate=False)) == 32


def test_the_balancer_and_prometheus_know_every_replica(replicas):
    names = {name for name in replicas["services"] if name.startswith("gateway")}
    (config,) = replicas["services"]["balancer"]["volumes"]
    servers = re.findall(r"^  server (\S+) (\S+):8080$", Path(config["source"]).read_text(), re.M)
    assert {name for pair in servers for name in pair} == names and len(servers) == len(names)
    mounted = {volume["target"]: Path(volume["source"]) for volume in replicas["services"]["prometheus"]["volumes"] if volume["type"] == "bind"}
    scraped = mounted["/etc/prometheus/prometheus.yml"].read_text()
    assert "files: [/etc/prometheus/replicas/*.yml]\n" in scraped
    targets = [scraped, mounted["/etc/prometheus/replicas/targets.yml"].read_text()]
    assert {target for text in targets for target in re.findall(r'"([\w-]+):9090"', text)} == names
    published = [port["target"] for service in gateways(replicas) for port in service["ports"]]
    assert published == [9090, 9090], "the data plane is reached through the balancer"


def test_the_balancer_accepts_its_configuration(tmp_path):
    # The names exist only in the network of compose.
    config = re.sub(r"(server \S+) \S+:8080", r"\1 127.0.0.1:8080", (DEPLOY / "compose/replicas/haproxy.cfg").read_text())
    (tmp_path / "haproxy.cfg").write_text(config)
    checked = subprocess.run(["haproxy", "-c", "-f", tmp_path / "haproxy.cfg"], capture_output=True, text=True, timeout=120)
    assert checked.returncode == 0 and "[WARNING]" not in checked.stdout + checked.stderr, checked


@pytest.fixture
def balancer(root, tmp_path):
    """The address of a balancer with the compose file's configuration, and two gateways behind it with their admin planes."""
    simulator = "http://" + root.simulate()
    # The balancer takes over a socket that listens already, so its port is known and open from the start.
    listener = socket.create_server(("127.0.0.1", 0))
    config = (DEPLOY / "compose/replicas/haproxy.cfg").read_text()
    for old, new in {":8080\n  default": f"fd@{listener.fileno()}\n  default", "inter 2s": "inter 100ms"}.items():
        assert old in config
        config = config.replace(old, new)
    started = []
    for name in ("gateway", "gateway-2"):
        gateway, data, admin = root.serve(simulator)
        old = f"server {name} {name}:8080\n"
        assert old in config
        config = config.replace(old, f"server {name} {data} port {admin.rsplit(':', 1)[1]}\n")
        started.append((gateway, admin))
    (tmp_path / "haproxy.cfg").write_text(config)
    command = ["haproxy", "-db", "-f", tmp_path / "haproxy.cfg"]
    process = subprocess.Popen(command, pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL)
    yield "127.0.0.1:%d" % listener.getsockname()[1], started
    process.terminate()
    process.wait()
    listener.close()


def test_the_balancer_uses_every_gateway_and_only_those_that_are_ready(balancer):
    address, started = balancer
    metadata = lambda: ask(address, f"{DOMAIN}/Metadata")[0]
    served = lambda admin: "\ninsights_gateway_requests_total{" in ask(admin, "/metrics")[1]
    wait_for(lambda: metadata() == 200 and all(served(admin) for _, admin in started), "both gateways to be asked")
    gateway, _ = started[0]
    assert gateway.stop() == 0
    assert [metadata() for _ in range(20)] == [200] * 20


@pytest.fixture
def store(replicas, root):
    """The URL, in the root of the gateways, of a Redis with the options of the compose file's store."""
    options = replicas["services"]["store"]["command"][1:]
    # The path is relative, because that of the root may be too long for the address of a socket.
    command = ["redis-server", *options, "--port", "0", "--unixsocket", "store.sock", "--unixsocketperm", "777"]
    process = subprocess.Popen(command, cwd=root.path, stdout=subprocess.DEVNULL)
    wait_for(lambda: (root.path / "store.sock").exists(), "the store to listen")
    yield "unix:///store.sock"
    process.terminate()
    process.wait()


def test_the_replicas_find_each_other_in_the_store(replicas, root, store):
    simulator = "http://" + root.simulate()
    root.write("/run/secrets/seal", Path(replicas["secrets"]["seal"]["file"]).read_text())
    seen = []
    for gateway in gateways(replicas):
        shared = {name: value for name, value in gateway["environment"].items() if "_SHARED__" in name}
        _, _, admin = root.serve(simulator, environment={**shared, "INSIGHTS_GATEWAY_SHARED__URL": store})
        seen.append(lambda admin=admin: re.search(r"^insights_gateway_replicas\S* 2$", ask(admin, "/metrics")[1], re.M))
    wait_for(lambda: all(sees() for sees in seen), "each replica to see two")


def test_the_secrets_are_generated(alone, deploy):
    secrets = {name: Path(secret["file"]).read_text().strip() for name, secret in alone["secrets"].items()}
    assert re.fullmatch("[0-9a-f]{64}", secrets["metrics_token"])
    wanted = alone["services"]["gateway"]["environment"]["INSIGHTS_GATEWAY_ADMIN__TOKEN_SHA256"]
    assert hashlib.sha256(secrets["metrics_token"].encode()).hexdigest() == wanted
    seal = (deploy / "compose/secrets/seal").read_text()
    again = run(deploy / "compose/prepare", "--again")
    assert "metrics_token" in again and (deploy / "compose/.env").stat().st_mode & 0o077 == 0
    assert wanted not in (deploy / "compose/.env").read_text()
    assert seal != (deploy / "compose/secrets/seal").read_text()


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
