"""Checks the Dockerfile with a linter, and builds it with a substitute for the Rust image."""

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


def test_the_linter_reports_nothing():
    run(tool("hadolint"), "--failure-threshold", "style", DOCKERFILE)


def test_versions_match_the_package():
    package = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]
    text = DOCKERFILE.read_text()
    assert re.search(r"^ARG VERSION=(.*)$", text, re.M)[1] == package["version"]
    assert re.search(r"^ARG RUST=([\d.]+)", text, re.M)[1] == package["rust-version"]


def test_the_context_holds_the_build_inputs_and_no_possible_secret(tmp_path):
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*" and all(rule.startswith("!") for rule in rules[1:]), "an allow-list"
    for name in (rule.removeprefix("!") for rule in rules[1:]):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    # Every file that the manifest names exists, and the lock file needs no change.
    run("cargo", "metadata", "--locked", "--no-deps", "--format-version", "1", cwd=tmp_path)


# Prints its arguments, and copies a binary that was built before.
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
    """Buildah with its own storage."""

    def __init__(self, folder):
        self._store = ["--root", folder / "store", "--runroot", folder / "run", "--storage-driver=vfs"]
        self._environment = {**os.environ, "BUILDAH_ISOLATION": "chroot", "TMPDIR": str(folder)}

    def __call__(self, *arguments):
        return run("buildah", *self._store, *arguments, env=self._environment).strip()


def stand_in(folder):
    """A substitute for the Rust image: it has the programs that the Dockerfile calls, but not Rust."""
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
    """The settings and the files of the image."""
    folder = tmp_path_factory.mktemp("buildah")
    buildah = Builder(folder)
    stand_in(folder / "stand-in")
    base = buildah("from", "scratch")
    buildah("copy", base, folder / "stand-in", "/")
    buildah("config", "--env", "PATH=/bin:/usr/local/bin", base)
    # The base image of the Dockerfile, which is not downloaded.
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
    # Mount points that the builder made in the container during the build.
    mounted = {"/dev", "/etc", "/proc", "/run", "/sys"}
    found = {name: about for name, about in found.items() if "/" + name.split("/")[1] not in mounted}
    assert set(found) == {"/LICENSE", "/insights-gateway", "/var", "/var/lib", "/var/lib/insights-gateway"}
    users = {name: (about.st_uid, about.st_gid) for name, about in found.items()}
    assert users.pop("/var/lib/insights-gateway") == (USER, USER)
    assert set(users.values()) == {(0, 0)}, "the gateway's user cannot change files of the image"


def test_the_image_sets_user_ports_and_command(image):
    settings, _ = image
    assert settings["User"] == f"{USER}:{USER}" and settings["WorkingDir"] == "/"
    assert (settings["Entrypoint"], settings["Cmd"]) == (["/insights-gateway"], ["serve"])
    assert settings["Healthcheck"]["Test"] == ["CMD", "/insights-gateway", "health"], "without a shell"
    assert set(settings["ExposedPorts"]) == {"8080/tcp", "9090/tcp"}
    assert settings["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
