"""The part of .github/workflows/release.yml that can run here: the scripts of deploy/release and their results, with a binary
that was not built for a release."""

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import tomllib

import pytest
import yaml

from empty_root import ACCOUNT, BINARY, DOMAIN, PATIENCE_SECONDS, ask, parsed, wait_for
from files import DEPLOY, ROOT, run

RELEASE = DEPLOY / "release"
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
VERSION = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
TARGET = "x86_64-unknown-linux-gnu"
# The command line in the systemd unit.
EXEC_START = re.compile(r"^ExecStart=(\S+) serve --config (\S+)$", re.M)


def script(name, *arguments):
    # The workflow takes the time of the commit from git, which does not know it in every checkout.
    return run(RELEASE / name, *arguments, env={**os.environ, "SOURCE_DATE_EPOCH": "1790000000"})


def steps():
    return [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]


def test_the_workflow_uses_every_release_script():
    text = "\n".join(step.get("run", "") for step in steps())
    # `archive` and `deb` share `stage`.
    used = set(re.findall(r"deploy/release/(\w+)", text)) | {"stage"}
    assert used == {path.name for path in RELEASE.iterdir()}
    for path in RELEASE.iterdir():
        assert os.access(path, os.X_OK), path
        assert path.read_text().startswith("#!/usr/bin/env "), path


def test_the_workflow_publishes_only_what_has_passed():
    jobs = WORKFLOW["jobs"]
    assert set(jobs["publish"]["needs"]) == {"gate", "build"}
    assert all("notes" in job["needs"] for name, job in jobs.items() if name in ("gate", "build"))
    targets = {entry["target"] for entry in jobs["build"]["strategy"]["matrix"]["include"]}
    assert targets == {"x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"}
    # Only the job that publishes may write, and no job keeps a token in its checkout.
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert [name for name, job in jobs.items() if job.get("permissions", {}).get("contents") == "write"] == ["publish"]
    checkouts = [step for step in steps() if step.get("uses", "").startswith("actions/checkout@")]
    assert len(checkouts) == len(jobs) and all(step["with"] == {"persist-credentials": False} for step in checkouts)
    assert all("timeout-minutes" in job for job in jobs.values())


def test_notes_are_the_dated_section_of_this_version(tmp_path):
    copy = tmp_path / "copy"
    (copy / "deploy/release").mkdir(parents=True)
    shutil.copy(RELEASE / "notes", copy / "deploy/release")
    shutil.copy(ROOT / "Cargo.toml", copy)
    notes = copy / "deploy/release/notes"

    def said(changelog, version=VERSION):
        (copy / "CHANGELOG.md").write_text(changelog)
        ran = subprocess.run([notes, version], capture_output=True, text=True)
        return ran.returncode, ran.stdout + ran.stderr

    dated = f"# Changelog\n\n## Unreleased\n\n- new\n\n## [{VERSION}] - 2026-11-28\n\n### Added\n\n- it\n\n## [0.0.1] - 2026-01-01\n\n- old\n"
    assert said(dated) == (0, "### Added\n\n- it\n")
    for wrong in (dated.replace(" - 2026-11-28", ""), dated.replace(f"[{VERSION}]", "[9.9.9]"), dated.replace("### Added\n\n- it\n", "")):
        code, why = said(wrong)
        assert code == 1 and "CHANGELOG.md says nothing below" in why
    assert said(dated, "0.0.1")[0] == 1, "Cargo.toml has another version"


def test_the_changelog_keeps_the_form_that_releases_need():
    text = (ROOT / "CHANGELOG.md").read_text()
    first, *others = re.findall(r"^## (.*)$", text, re.M)
    assert first == "Unreleased" or re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", first)
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", other) for other in others)
    kinds = set(re.findall(r"^### (.*)$", text, re.M))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_version_of_this_tree_has_notes():
    """What the workflow runs first, for the tag of this version."""
    assert script("notes", VERSION).startswith("### ")


@pytest.fixture(scope="module")
def stripped(tmp_path_factory):
    """The binary without debug information, as in a release, so that packing takes only seconds."""
    binary = tmp_path_factory.mktemp("stripped") / "insights-gateway"
    run("strip", "-o", binary, BINARY)
    return binary


@pytest.fixture(scope="module")
def dist(stripped, tmp_path_factory):
    """The files of a release."""
    folder = tmp_path_factory.mktemp("dist")
    script("archive", stripped, TARGET, folder)
    script("deb", stripped, folder)
    (folder / f"insights-gateway-{TARGET}.cdx.json").write_text(script("sbom", TARGET))
    script("chart", "registry.example/insights-gateway", folder)
    script("checksums", folder)
    return folder


def test_a_release_is_complete(dist):
    architecture = run("dpkg", "--print-architecture").strip()
    assert {path.name for path in dist.iterdir()} == {
        "SHA256SUMS",
        f"insights-gateway-{TARGET}.cdx.json",
        f"insights-gateway-{VERSION}-{TARGET}.tar.gz",
        f"insights-gateway-{VERSION}-chart.tgz",
        f"insights-gateway_{VERSION}-1_{architecture}.deb",
    }
    sums = dict(reversed(line.split("  ")) for line in (dist / "SHA256SUMS").read_text().splitlines())
    for path in dist.iterdir():
        if path.name != "SHA256SUMS":
            assert sums.pop(path.name) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not sums


def test_an_archive_is_the_same_each_time(dist, stripped, tmp_path):
    script("archive", stripped, TARGET, tmp_path)
    name = f"insights-gateway-{VERSION}-{TARGET}.tar.gz"
    assert (tmp_path / name).read_bytes() == (dist / name).read_bytes()
    with tarfile.open(dist / name) as archive:
        top = f"insights-gateway-{VERSION}-{TARGET}"
        names = {name.removeprefix(top + "/") for name in archive.getnames()}
        owners = {(member.uid, member.gid) for member in archive.getmembers()}
    assert owners == {(0, 0)}
    assert {"insights-gateway", "LICENSE", "man/man1/insights-gateway-serve.1.gz", "config/gateway.schema.json"} <= names


def test_the_bill_of_materials_lists_the_linked_crates(dist):
    bill = json.loads((dist / f"insights-gateway-{TARGET}.cdx.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["version"] == VERSION
    listed = {part["name"] for part in bill["components"]}
    assert {"hyper", "rustls", "aws-lc-rs", "clap", "redb"} <= listed and len(listed) > 50
    # Dependencies of tests, of the build, and of other systems.
    assert not listed & {"proptest", "rcgen", "ring", "syn", "cc", "windows-sys", "insights-gateway"}
    for part in bill["components"]:
        assert part["licenses"] and re.fullmatch("[0-9a-f]{64}", part["hashes"][0]["content"]), part["name"]
    references = {part["bom-ref"] for part in bill["components"]}
    assert {need for part in bill["dependencies"] for need in part["dependsOn"]} == references, "nothing hangs in the air"


def test_the_chart_names_the_image_of_the_release(dist):
    rendered = run("helm", "template", "insights", dist / f"insights-gateway-{VERSION}-chart.tgz")
    assert f'image: "registry.example/insights-gateway:{VERSION}"' in rendered


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory):
    """The package, unpacked by dpkg into its own root."""
    root = tmp_path_factory.mktemp("installed")
    (root / "var/lib/dpkg/updates").mkdir(parents=True)
    (root / "var/lib/dpkg/info").mkdir()
    (root / "var/lib/dpkg/status").touch()
    # Files must belong to root, and this user is root only in its own namespace.
    as_root = [] if os.geteuid() == 0 else ["unshare", "--map-root-user"]
    (package,) = dist.glob("*.deb")
    run(*as_root, "dpkg", f"--root={root}", "--force-not-root", "--unpack", package)
    return root


def test_the_package_has_the_files_of_a_service(installed):
    found = {"/" + str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    found = {name for name in found if not name.startswith("/var/lib/dpkg/")}
    docs = {name for name in found if name.startswith("/usr/share/doc/")}
    pages = {name for name in found if name.startswith("/usr/share/man/")}
    assert found - docs - pages == {
        "/usr/bin/insights-gateway",
        # Unpacking alone does not replace a configuration file, because an operator may have changed it.
        "/etc/insights-gateway/gateway.toml.dpkg-new",
        "/usr/lib/systemd/system/insights-gateway.service",
        "/usr/lib/systemd/system/insights-gateway.socket",
        "/usr/lib/tmpfiles.d/insights-gateway.conf",
        "/usr/share/bash-completion/completions/insights-gateway",
        "/usr/share/fish/vendor_completions.d/insights-gateway.fish",
        "/usr/share/zsh/vendor-completions/_insights-gateway",
    }
    assert "/usr/share/man/man1/insights-gateway.1.gz" in pages and "/usr/share/man/man5/insights-gateway.toml.5.gz" in pages
    assert {"/usr/share/doc/insights-gateway/copyright", "/usr/share/doc/insights-gateway/LICENSE"} <= docs
    assert (installed / "var/lib/dpkg/info/insights-gateway.conffiles").read_text().strip() == "/etc/insights-gateway/gateway.toml"


def test_manual_pages_have_no_warnings(installed):
    pages = sorted((installed / "usr/share/man").rglob("*.gz"))
    assert len(pages) > 10
    for page in pages:
        text = gzip.decompress(page.read_bytes()).decode()
        rendered = subprocess.run(["groff", "-man", "-Kutf8", "-Tutf8", "-ww", "-z"], input=text, capture_output=True, text=True)
        assert (rendered.returncode, rendered.stderr) == (0, ""), page.name


def test_the_installation_starts_and_enables_nothing(installed):
    script = (installed / "var/lib/dpkg/info/insights-gateway.postinst").read_text()
    assert "systemd-tmpfiles" in script and "insights-gateway.conf" in script
    assert "deb-systemd-invoke start" not in script and "deb-systemd-invoke restart" not in script
    assert not re.search(r"^\s*deb-systemd-helper enable", script.split("was-enabled")[0], re.M)


def test_the_installed_unit_starts_a_gateway_that_serves(installed, demo, tmp_path):
    (binary, config), = EXEC_START.findall((installed / "usr/lib/systemd/system/insights-gateway.service").read_text())
    binary, config = installed / binary.lstrip("/"), installed / (config.lstrip("/") + ".dpkg-new")
    # As systemd passes credentials.
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    for name, value in (("twilio_api_key", ACCOUNT["TWILIO_API_KEY"]), ("twilio_api_secret", "secret")):
        (credentials / name).write_text(value)
        (credentials / name).chmod(0o600)
    environment = {"CREDENTIALS_DIRECTORY": str(credentials)}
    pages = f"--set=cache.disk.path={tmp_path}"

    checked = subprocess.run([binary, "check", "--config", config, pages], env=environment, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "OK\n")
    # Without the credentials, too.
    checked = subprocess.run([binary, "check", "--without-secrets", "--config", config, pages], env={}, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "OK\n")

    log = tmp_path / "gateway.log"
    listen = ["--listen", f"unix:{tmp_path / 'gateway.sock'}", "--admin-listen", "127.0.0.1:0", "--set=log.format=json"]
    with log.open("w") as output:
        gateway = subprocess.Popen(
            [binary, "serve", "--config", config, pages, *listen, "--upstream", demo.simulator],
            env=environment,
            stderr=output,
        )
    try:
        admin = serving_admin(gateway, log)
        assert ask(admin, "/readyz")[0] == 200
        metadata = run("curl", "-sS", "--fail", "--unix-socket", tmp_path / "gateway.sock", f"http://localhost{DOMAIN}/Metadata")
        assert "Conversation.Count" in metadata
    finally:
        gateway.terminate()
        assert gateway.wait(PATIENCE_SECONDS) == 0


def serving_admin(gateway, log):
    """The admin address of the gateway with this log, once it serves."""

    def look():
        assert gateway.poll() is None, log.read_text()
        entries = map(parsed, log.read_text().split("\n")[:-1])
        return next((entry["admin"] for entry in entries if entry.get("message") == "serving"), None)

    return wait_for(look, "a gateway", log.read_text)
