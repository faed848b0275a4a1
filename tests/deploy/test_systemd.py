"""Checks the units with systemd's analyser and with the system calls that the gateway really makes. Also starts a
gateway with a socket from systemd's own tool."""

import re
import socket
import subprocess

from empty_root import ACCOUNT, BINARY, DOMAIN, PATIENCE_SECONDS, ask, parsed, wait_for
from files import DEPLOY, run

SERVICE = DEPLOY / "systemd/insights-gateway.service"
SOCKET = DEPLOY / "systemd/insights-gateway.socket"
CONFIG = DEPLOY / "systemd/gateway.toml"
QUERY = {"query": {"measures": ["Conversation.Count"], "dimensions": ["Conversation.ConversationStatus"]}}


def setting(unit, name):
    """All values of a setting, in file order."""
    return re.findall(rf"^{name}=(.*)$", unit.read_text(), re.M)


def test_systemd_accepts_the_units(tmp_path):
    for unit in (SERVICE, SOCKET):
        # The analyser requires that the program exists.
        text = unit.read_text().replace("/usr/local/bin/insights-gateway", BINARY)
        (tmp_path / unit.name).write_text(text)
    ran = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / SERVICE.name, tmp_path / SOCKET.name], capture_output=True, text=True
    )
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")


def test_systemd_rates_the_service_as_well_protected():
    # Of 10. The rest is network access, which a gateway needs.
    run("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=12", SERVICE)


def allowed_calls():
    """The system calls that SystemCallFilter= allows."""

    def members(group):
        lines = run("systemd-analyze", "syscall-filter", group).splitlines()[1:]
        words = {line.strip() for line in lines} - {""}
        nested = {word for word in words if word.startswith("@")}
        plain = {word for word in words - nested if not word.startswith("#")}
        return plain.union(*map(members, nested))

    allowed = set()
    for value in setting(SERVICE, "SystemCallFilter"):
        groups = set().union(*map(members, value.removeprefix("~").split()))
        allowed = allowed - groups if value.startswith("~") else allowed | groups
    return allowed


def test_the_gateway_makes_no_system_call_that_is_filtered(root, tmp_path):
    trace, log = tmp_path / "trace", tmp_path / "gateway.log"
    with log.open("w") as output:
        gateway = subprocess.Popen(
            # With -D the gateway is our child process, and the tracer is its grandchild.
            ["strace", "-D", "-f", "-o", trace, BINARY, "serve", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"]
            + ["--upstream", "http://" + root.simulate(), f"--set=cache.disk.path={tmp_path / 'pages'}"],
            env=ACCOUNT,
            stderr=output,
        )
    try:
        _, data, admin = addresses(log)
        for _ in range(2):
            assert ask(data, f"{DOMAIN}/Query", QUERY)[0] == 200
            assert ask(admin, "/metrics")[0] == 200
    finally:
        gateway.terminate()
        assert gateway.wait(PATIENCE_SECONDS) == 0
    wait_for(lambda: re.search(rf"^{gateway.pid} +\+\+\+ exited", trace.read_text(), re.M), "the end of the trace")
    made = set(re.findall(r"^\d+ +(\w+)\(", trace.read_text(), re.M))
    assert {"accept4", "connect", "execve"} <= made
    assert made - allowed_calls() == set()


def addresses(log):
    """Waits until the gateway that writes to this file serves, and returns its addresses."""

    def serving():
        entries = map(parsed, log.read_text().split("\n")[:-1])
        return next((entry for entry in entries if entry.get("message") == "serving"), None)

    entry = wait_for(serving, "a gateway", log.read_text)
    return entry, entry["data"], entry["admin"]


def test_the_gateway_takes_the_socket_and_the_credentials(root, tmp_path):
    """Like the units, except for the address: systemd's tool cannot report a port that the system chose."""
    (name,) = setting(SOCKET, "FileDescriptorName")
    (command,) = setting(SERVICE, "ExecStart")
    _, *arguments = command.split()
    config = tmp_path / "gateway.toml"
    config.write_text(CONFIG.read_text().replace("/var/lib/insights-gateway", str(tmp_path / "pages")))
    arguments[arguments.index("/etc/insights-gateway/gateway.toml")] = str(config)
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    for value in setting(SERVICE, "LoadCredential"):
        (credentials / value.split(":")[0]).write_text("secret\n")
    upstream = "http://" + root.simulate()
    path, log = tmp_path / "gateway.sock", tmp_path / "activated.log"
    with log.open("w") as output:
        gateway = subprocess.Popen(
            ["systemd-socket-activate", f"--listen={path}", f"--fdname={name}", "--setenv=CREDENTIALS_DIRECTORY"]
            + [BINARY, *arguments, "--admin-listen=127.0.0.1:0", "--upstream", upstream],
            env={"CREDENTIALS_DIRECTORY": str(credentials)},
            stderr=output,
        )
    try:
        wait_for(lambda: "Listening on" in log.read_text(), "the socket", log.read_text)
        # The first connection starts the gateway, which answers it.
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE_SECONDS)
            client.connect(str(path))
            client.sendall(f"GET {DOMAIN}/Metadata HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n"), log.read_text()
    finally:
        gateway.terminate()
        assert gateway.wait(PATIENCE_SECONDS) == 0
