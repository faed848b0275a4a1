"""The image's recipe, by its linter, and what can be said of it without an engine."""

import re
import shutil
import tomllib

from files import DEPLOY, ROOT, run, tool

DOCKERFILE = DEPLOY / "docker/Dockerfile"


def test_the_linter_finds_nothing():
    run(tool("hadolint"), "--failure-threshold", "style", DOCKERFILE)


def test_versions_are_the_packages():
    package = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]
    text = DOCKERFILE.read_text()
    assert re.search(r"^ARG VERSION=(.*)$", text, re.M)[1] == package["version"]
    assert re.search(r"^ARG RUST=([\d.]+)", text, re.M)[1] == package["rust-version"]


def test_the_context_holds_what_the_build_reads_and_nothing_that_could_be_a_secret(tmp_path):
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*" and all(rule.startswith("!") for rule in rules[1:]), "an allow-list"
    for name in (rule.removeprefix("!") for rule in rules[1:]):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    # All that the manifest names is there, and the lock file needs no change.
    run("cargo", "metadata", "--locked", "--no-deps", "--format-version", "1", cwd=tmp_path)
    for copied in re.findall(r"^COPY (?!--from)(\S+)", DOCKERFILE.read_text(), re.M):
        assert copied == "." or (tmp_path / copied).exists()


def test_the_image_is_nobody_and_holds_no_shell():
    final = DOCKERFILE.read_text().split("\nFROM ")[-1]
    assert final.startswith("scratch\n")
    assert re.search(r"^USER (\d+):(\d+)$", final, re.M).groups() == ("65532", "65532")
    for words in ("HEALTHCHECK", "ENTRYPOINT", "CMD"):
        (line,) = re.findall(rf"^{words} .*$", final, re.M)
        assert '["' in line, f"{words} needs no shell"
    assert "RUN" not in final
