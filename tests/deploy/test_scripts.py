"""Checks the shell scripts, and the commands in the workflows, with ShellCheck."""

import re

import pytest
import yaml

from files import DEPLOY, ROOT, run

SCRIPTS = [ROOT / ".ci/run", ROOT / "tests/run", ROOT / "fuzz/run", *(path for path in sorted(DEPLOY.rglob("*")) if path.is_file())]
SCRIPTS = [path for path in SCRIPTS if re.match(rb"#!.*\b(ba)?sh\n", path.read_bytes())]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def test_there_are_scripts():
    assert {path.name for path in SCRIPTS} >= {"run", "build", "archive", "deb", "insights-export"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_shellcheck_finds_nothing_in_a_script(script):
    run("shellcheck", "--severity=style", script)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing_in_the_steps_of_a_workflow(workflow, tmp_path):
    jobs = yaml.safe_load(workflow.read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert commands
    for number, command in enumerate(commands):
        # The runner replaces expressions before the shell reads the line. Secrets and names from outside come as variables,
        # so that nobody can put commands into them.
        assert set(re.findall(r"\$\{\{ *(\w+)", command)) <= {"matrix"}, command
        step = tmp_path / f"step-{number}"
        step.write_text(re.sub(r"\$\{\{.*?\}\}", "expression", command))
        run("shellcheck", "--shell=bash", "--severity=style", step)
