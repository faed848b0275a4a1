"""The configuration's JSON Schema: shipped files are valid, and values with a form that the gateway refuses are not."""

import json
import re
import subprocess
import tomllib

import pytest
import yaml
from jsonschema import Draft7Validator

from empty_root import BINARY
from files import DEPLOY, ROOT, run

FILE = ROOT / "config/gateway.schema.json"
SCHEMA = json.loads(FILE.read_text())
VALIDATOR = Draft7Validator(SCHEMA)
SHIPPED = sorted([*(ROOT / "config").glob("*.toml"), *DEPLOY.rglob("gateway.toml")])
# The reference with all commented keys switched on.
WHOLE = re.sub(r"^#(?=[^ \n])", "", (ROOT / "config/gateway.toml").read_text(), flags=re.M)


def parsed(text):
    """The document as editors read it, with dates as texts."""
    return json.loads(json.dumps(tomllib.loads(text), default=lambda date: date.isoformat()))


def faults(document):
    return [fault.message for fault in VALIDATOR.iter_errors(document)]


def tables(schema, path=()):
    """Every table that a configuration may have, by the keys on the way to it."""
    yield path
    for key, below in schema.get("properties", {}).items():
        if below.get("type") == "object":
            yield from tables(below, (*path, key))
    if isinstance(schema.get("additionalProperties"), dict):
        yield from tables(schema["additionalProperties"], (*path, "any"))


def at(path, value):
    for key in reversed(path):
        value = {key: value}
    return value


def test_the_file_is_what_the_program_prints():
    Draft7Validator.check_schema(SCHEMA)
    assert run(BINARY, "schema") == FILE.read_text()


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: str(file.relative_to(ROOT)))
def test_shipped_files_are_valid(file):
    assert faults(parsed(file.read_text())) == []


def test_the_charts_configuration_is_valid():
    values = yaml.safe_load((DEPLOY / "helm/insights-gateway/values.yaml").read_text())
    assert faults(parsed(values["config"])) == []


def test_the_whole_reference_is_valid():
    whole = parsed(WHOLE)
    # It has both ways to sign in.
    assert whole["accounts"] and whole["teams"] and faults(whole) == []


@pytest.mark.parametrize("path", [path for path in tables(SCHEMA) if path not in {("accounts",), ("teams",)}], ids=".".join)
def test_unknown_keys_are_invalid(path):
    (fault,) = faults(at(path, {"no_key": 1}))
    assert "no_key" in fault


@pytest.mark.parametrize(
    "text",
    [
        'accounts.main.api_secret = { file = "/x" }',
        'accounts.main.api_secret = "literal"',
        'teams.a.token_sha256 = "0f"',
        'teams.a.token_sha256 = ["0f", { sha256 = "0f", expires = 2027-01-31 }]',
        'upstream.proxy = { url = "http://u@p:1", password = { env = "P" } }',
        'upstream.proxy = "none"',
        "retry.budget = 1",
        'server.drain = "0s"',
        'shared.seal = { file = "/x" }',
        'shared.seal = [{ file = "/x" }, { credential = "y" }]',
    ],
)
def test_every_form_of_a_value_is_valid(text):
    assert faults(parsed(text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "server.drain = 30",
        'server.drain = "30"',
        'server.header_timeout = "0s"',
        'server.open = "yes"',
        'server.listen = "127.0.0.1:8080"',
        'server.max_body = "1 MiB"',
        "server.max_connections = 0",
        "retry.attempts = 2.5",
        "log.hits = 1.5",
        'log.format = "xml"',
        'accounts.main.rate = "5/d"',
        'accounts."a b".burst = 1',
        'accounts.main.api_secret = { file = "/x", env = "Y" }',
        'accounts.main.api_secret = { path = "/x" }',
        'teams.a.operations = ["querry"]',
        'teams.a.policy.require = [{ op = "LIKE", field = "A.B", values = ["x"] }]',
        'teams.a.policy.require = [{ op = "EQ", field = "A.B" }]',
        'teams.a.token_sha256 = [{ expires = "2027-01-31" }]',
        'shared.lease = "0s"',
        "shared.replicas = 0",
        'shared.seal = [{ path = "/x" }]',
    ],
)
def test_forms_that_the_program_refuses_are_invalid(text, tmp_path):
    assert len(faults(parsed(text))) == 1
    config = tmp_path / "gateway.toml"
    config.write_text(text + "\n")
    refused = subprocess.run([BINARY, "check", "--without-secrets", "--config", config], env={}, capture_output=True, text=True)
    assert refused.returncode == 64, refused.stderr


def test_the_handbook_and_the_schema_have_the_same_sections():
    rows = re.findall(r"^\| `\[(\w+)", (ROOT / "docs/configuration.md").read_text(), re.M)
    assert set(rows) == set(SCHEMA["properties"])


def test_the_handbook_names_only_keys_that_the_schema_has():
    text = (ROOT / "docs/configuration.md").read_text()
    sections = "|".join(SCHEMA["properties"])
    named = set(re.findall(rf"`((?:{sections})(?:\.(?:\*|\w+))+)`", text))
    assert len(named) > 15
    for key in named:
        table = SCHEMA
        for step in key.split("."):
            assert table.get("type") == "object", key
            known = table.get("properties", {})
            assert step in known or isinstance(table["additionalProperties"], dict), key
            table = known.get(step, table["additionalProperties"])
