"""The image's recipe: by its linter, and by a builder that carries it out with a stand-in for Rust's image."""

import json
import os
import re
import shutil
import tomllib
from pathlib import Path

import pytest

from empty_root import BINARY, USER
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


# Says what it is told to do, and hands out what was built before.
CARGO = """#!/bin/sh
[ "$*" = "build --locked --release --bin insights-gateway --target stand-in" ] || exit 1
[ "$RUSTFLAGS" = "-C target-feature=+crt-static" ] || exit 1
[ -f Cargo.lock ] && [ -f src/main.rs ] && [ ! -e tests ] || exit 1
mkdir -p target/stand-in/release && cp /prebuilt target/stand-in/release/insights-gateway
"""
RUSTC = """#!/bin/sh
[ "$*" = "--print host-tuple" ] && echo stand-in
"""


class Builder:
    """Buildah, with a store of its own."""

    def __init__(self, folder):
        self._store = ["--root", folder / "store", "--runroot", folder / "run", "--storage-driver=vfs"]
        self._environment = {**os.environ, "BUILDAH_ISOLATION": "chroot", "TMPDIR": str(folder)}

    def __call__(self, *arguments):
        return run("buildah", *self._store, *arguments, env=self._environment).strip()


def stand_in(folder):
    """What the recipe asks of Rust's image, without Rust."""
    for name in ("bin", "usr/local/bin"):
        (folder / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox"), folder / "bin/busybox")
    for command in ("sh", "mkdir", "cp", "chroot"):
        (folder / "bin" / command).symlink_to("busybox")
    shutil.copy(BINARY, folder / "prebuilt")
    for name, script in {"cargo": CARGO, "rustc": RUSTC}.items():
        (folder / "usr/local/bin" / name).write_text(script)
        (folder / "usr/local/bin" / name).chmod(0o755)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """The image's settings and its files."""
    folder = tmp_path_factory.mktemp("buildah")
    buildah = Builder(folder)
    stand_in(folder / "stand-in")
    base = buildah("from", "scratch")
    buildah("copy", base, folder / "stand-in", "/")
    buildah("config", "--env", "PATH=/bin:/usr/local/bin", base)
    # The recipe's own base, which is not fetched.
    (tag,) = re.findall(r"^ARG RUST=(.*)$", DOCKERFILE.read_text(), re.M)
    buildah("commit", base, f"docker.io/library/rust:{tag}")
    buildah("bud", "--pull-never", "--format=docker", "--file", DOCKERFILE, "--tag", "gateway", ROOT)
    container = buildah("from", "--pull-never", "localhost/gateway")
    assert buildah("run", container, "--", "/insights-gateway", "--version").startswith("insights-gateway ")
    yield json.loads(buildah("inspect", "--type=image", "localhost/gateway"))["Docker"]["config"], Path(buildah("mount", container))
    buildah("umount", container)


def test_the_image_holds_one_program(image):
    _, files = image
    found = {"/" + str(path.relative_to(files)): path.lstat() for path in files.rglob("*")}
    # Where the builder has mounted something into the container, for as long as it ran.
    mounted = {"/dev", "/etc", "/proc", "/run", "/sys"}
    found = {name: about for name, about in found.items() if "/" + name.split("/")[1] not in mounted}
    assert set(found) == {"/LICENSE", "/insights-gateway", "/var", "/var/lib", "/var/lib/insights-gateway"}
    users = {name: (about.st_uid, about.st_gid) for name, about in found.items()}
    assert users.pop("/var/lib/insights-gateway") == (USER, USER)
    assert set(users.values()) == {(0, 0)}, "it cannot change itself"


def test_the_image_says_how_it_runs(image):
    settings, _ = image
    assert settings["User"] == f"{USER}:{USER}" and settings["WorkingDir"] == "/"
    assert (settings["Entrypoint"], settings["Cmd"]) == (["/insights-gateway"], ["serve"])
    assert settings["Healthcheck"]["Test"] == ["CMD", "/insights-gateway", "health"], "without a shell"
    assert set(settings["ExposedPorts"]) == {"8080/tcp", "9090/tcp"}
    assert settings["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
