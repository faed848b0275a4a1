"""The Python examples of the handbook run as they are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stack import PATIENCE_SECONDS, ROWS

EXAMPLES = Path(__file__).parents[3] / "examples/sdk"


@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_an_example_prints_every_row(stack, example):
    environment = {**os.environ, "INSIGHTS_URL": stack.url}
    command = [sys.executable, EXAMPLES / example]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert run.returncode == 0, run.stderr
    counts = dict(line.split() for line in run.stdout.splitlines())
    assert sum(map(int, counts.values())) == ROWS
