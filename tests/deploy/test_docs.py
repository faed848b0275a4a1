"""Snippets in README and handbook: shell snippets run against a demo, configurations are valid, and data can be parsed."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft7Validator

from demo import Demo
from empty_root import BINARY, DOMAIN, PATIENCE_SECONDS, ask
from files import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.M | re.S)
SCHEMA = Draft7Validator(json.loads((ROOT / "config/gateway.schema.json").read_text()))
# Commands that need an engine, a cluster, a package manager, a running systemd or a build. Other tests cover parts of them.
ELSEWHERE = {"apt", "cargo", "deploy", "docker", "helm", "install", "journalctl", "kubectl", "make", "systemctl", "tests"}
# Commands that run until they are stopped. Only their flags are checked.
ENDLESS = {"serve", "demo", "simulate"}
# The addresses of the gateway in the handbook.
DATA, ADMIN = "127.0.0.1:8080", "127.0.0.1:9090"


def snippets(*languages):
    for page in PAGES:
        for indent, language, text in BLOCK.findall(page.read_text()):
            if language in languages:
                yield page, re.sub(f"^{indent}", "", text, flags=re.M)


def ids(pair):
    page, text = pair
    return f"{page.relative_to(ROOT)}: {text.splitlines()[0][:40]}"


def lines(language, text):
    """The commands, each on one line."""
    text = text.replace("\\\n", " ")
    if language == "console":
        text = "\n".join(line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ "))
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def program(command):
    """The name of the program that a command runs, without its folder; for a script of the repository, its top folder."""
    first, *_ = re.sub(r"^([A-Z_]+=('[^']*'|\S*) )+", "", command).split()
    return first.split("/")[0] if first.startswith(("deploy/", "tests/")) else first.rsplit("/", 1)[-1]


def commands():
    for language in ("sh", "console"):
        for page, text in snippets(language):
            for command in lines(language, text):
                yield page, command


def is_endless(command):
    words = command.split()
    if program(command) == "curl" and "/events" in words[-1]:
        return True
    return program(command).startswith("insights-gateway") and len(words) > 1 and words[1] in ENDLESS


RUN = [(page, command) for page, command in commands() if program(command) not in {*ELSEWHERE, "export"} and not is_endless(command)]


def test_there_are_snippets_to_run():
    assert len(RUN) > 15, RUN


@pytest.fixture(scope="module")
def handbook(tmp_path_factory):
    """A demo, and a shell in which the addresses of the handbook lead to it."""
    folder = tmp_path_factory.mktemp("handbook")
    audit = folder / "gateway.log"
    demo = Demo(folder)
    ask(demo.gateway.removeprefix("http://"), f"{DOMAIN}/Metadata")
    (folder / "bin").mkdir()
    for name in ("insights-gateway", "insights-gateway-new"):
        (folder / "bin" / name).symlink_to(BINARY)
    (folder / "home/.config").mkdir(parents=True)
    (folder / "home/.config/insights-token").write_text("igw_token\n")
    (folder / "home/.config/insights-token").chmod(0o600)
    audit.write_text(demo.log.read_text())
    names = {
        "https://insights.internal": demo.gateway,
        f"http://{DATA}": demo.gateway,
        f"http://{ADMIN}": demo.admin,
        "--unix-socket /run/insights.sock http://localhost": demo.gateway,
        "./insights-gateway-new": "insights-gateway-new",
        "/etc/insights-gateway/gateway.toml": str(ROOT / "deploy/systemd/gateway.toml"),
        "gateway.log": str(audit),
    }
    environment = {
        "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(folder / "home"),
        "TOKEN": "igw_token",
        "INSIGHTS_GATEWAY_SERVER__LISTEN": demo.gateway.removeprefix("http://"),
        "INSIGHTS_GATEWAY_ADMIN__LISTEN": demo.admin.removeprefix("http://"),
    }

    def run(command):
        for name, there in names.items():
            command = command.replace(name, there)
        # The secrets of the examples do not exist here.
        command = command.replace("insights-gateway check", "insights-gateway check --without-secrets")
        command = command.replace("insights-gateway-new check", "insights-gateway-new check --without-secrets")
        return subprocess.run(
            ["bash", "-eo", "pipefail", "-c", command],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )

    yield run
    demo.close()


@pytest.mark.parametrize("snippet", RUN, ids=ids)
def test_commands_run(snippet, handbook):
    _, command = snippet
    ran = handbook(command)
    assert ran.returncode == 0, f"{command}\n{ran.stdout}{ran.stderr}"
    # An error in the output of curl, whose exit code does not show it.
    assert '"userError"' not in ran.stdout, ran.stdout


def test_the_lines_that_a_demo_prints_run(demo):
    pasted = [line for line in demo.printed().splitlines() if line.startswith("curl ")]
    assert len(pasted) == 3
    answers = [subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=PATIENCE_SECONDS).stdout for line in pasted]
    assert all(answer.startswith("HTTP/1.1 200 ") for answer in answers), answers
    details = [re.search(r"detail=(\w+)", answer)[1] for answer in answers]
    assert details == ["miss", "miss", "hit"]


@pytest.mark.parametrize("snippet", [*snippets("toml")], ids=ids)
def test_configurations_are_valid(snippet):
    _, text = snippet
    assert [fault.message for fault in SCHEMA.iter_errors(tomllib.loads(text))] == []


@pytest.mark.parametrize("snippet", [*snippets("json"), *snippets("yaml")], ids=ids)
def test_data_can_be_parsed(snippet):
    _, text = snippet
    assert yaml.safe_load(text), "JSON is YAML, too"
