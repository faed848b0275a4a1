"""Runs the static binary alone in an empty root file system, as the container image made from scratch does."""

import http.server
import json
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import trustme

from empty_root import DOMAIN, USER, ask, has_every_user

QUERY = {"query": {"measures": ["Conversation.Count"], "dimensions": ["Conversation.ConversationStatus"]}}


def test_it_serves_without_any_other_file(root):
    gateway, data, admin = root.serve("http://" + root.simulate())
    status, metadata = ask(data, f"{DOMAIN}/Metadata")
    assert status == 200 and "Conversation.Count" in metadata
    first, second = ask(data, f"{DOMAIN}/Query", QUERY), ask(data, f"{DOMAIN}/Query", QUERY)
    assert first == second and first[0] == 200
    # Time zones are built in, since there is no /usr/share/zoneinfo here.
    zoned = {"properties": {"timezone": "America/New_York"}, **QUERY}
    assert ask(data, f"{DOMAIN}/Query", zoned)[0] == 200

    assert root.run("health", "--url", f"http://{admin}").returncode == 0
    # It runs as an unprivileged user without capabilities, and as process 1.
    status_file = Path(f"/proc/{gateway.pid}/status").read_text()
    about = dict(line.split(":", 1) for line in status_file.splitlines())
    if has_every_user():
        assert set(about["Uid"].split()) == set(about["Gid"].split()) == {str(USER)}
        assert about["Groups"].strip() == ""
    assert int(about["CapEff"], 16) == 0
    assert about["NSpid"].split()[-1] == "1"

    assert gateway.stop() == 0, gateway.said()
    assert root.run("health", "--url", f"http://{admin}").returncode == 1
    assert root.files() == ["/insights-gateway"], "it needs no file and leaves no file"


def test_the_demo_runs_with_one_command(root):
    demo = root.start(
        "demo",
        "--simulator=127.0.0.1:0",
        environment={"INSIGHTS_GATEWAY_SERVER__LISTEN": "127.0.0.1:0", "INSIGHTS_GATEWAY_ADMIN__LISTEN": "127.0.0.1:0"},
    )
    data = demo.wait_for(lambda line: line.strip().startswith("gateway") and line.split("http://")[1])
    assert ask(data, f"{DOMAIN}/Query", QUERY)[0] == 200
    assert demo.stop() == 0, demo.said()


def test_check_reads_mounted_files(root):
    account = f'[accounts.main]\naccount_sid = "AC{"0" * 32}"\napi_key = "SK{"0" * 32}"\n'
    root.write("/etc/insights-gateway/gateway.toml", account + 'api_secret = { file = "/run/secrets/twilio" }\n')
    check = ["check", "--config", "/etc/insights-gateway/gateway.toml"]
    missing = root.run(*check)
    assert missing.returncode == 64
    assert "/etc/insights-gateway/gateway.toml:4: accounts.main.api_secret" in missing.stderr
    root.write("/run/secrets/twilio", "planted")
    found = root.run(*check)
    assert found.returncode == 0, found.stderr
    assert "planted" not in found.stdout + found.stderr


def test_names_are_found_in_the_mounted_hosts_file(root):
    port = root.simulate().rpartition(":")[2]
    root.write("/etc/hosts", "127.0.0.1 insights.test\n")
    _, data, _ = root.serve(f"http://insights.test:{port}")
    assert ask(data, f"{DOMAIN}/Metadata")[0] == 200


def test_names_are_resolved_by_the_name_server(tmp_path):
    # It needs its own network namespace, where port 53 is free.
    enter = ["unshare", "--net"] if has_every_user() else ["unshare", "--map-root-user", "--net"]
    script = Path(__file__).with_name("name_server.py")
    ran = subprocess.run([*enter, sys.executable, script, tmp_path], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert "insights.test" in result["asked"] and result["status"] == 200


class Upstream(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = b'{"cubes":[]}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def authority():
    return trustme.CA()


@pytest.fixture
def tls_upstream(authority):
    """Starts an upstream with TLS, and returns its URL."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    yield f"https://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    serving.join()
    server.server_close()


def test_without_a_certificate_store_only_the_built_in_roots_are_trusted(root, tls_upstream):
    gateway, data, _ = root.serve(tls_upstream, "--set", "retry.attempts=1")
    line = gateway.wait_for(lambda line: "trusting the built-in roots" in line and json.loads(line))
    assert line["roots"] > 100
    status, answer = ask(data, f"{DOMAIN}/Metadata")
    assert status == 502 and json.loads(answer)["params"]["reason"] == "upstream_unreachable"


@pytest.mark.parametrize(
    "file, environment",
    [("/etc/ssl/certs/ca-certificates.crt", {}), ("/company.pem", {"SSL_CERT_FILE": "/company.pem"})],
)
def test_a_mounted_certificate_store_replaces_the_built_in_roots(root, authority, tls_upstream, file, environment):
    root.write(file, authority.cert_pem.bytes().decode())
    gateway, data, _ = root.serve(tls_upstream, environment=environment)
    assert ask(data, f"{DOMAIN}/Metadata") == (200, '{"cubes":[]}')
    assert "trusting the built-in roots" not in gateway.said()

