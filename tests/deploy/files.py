"""Where things are, and how the tools are run."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def tool(name):
    """A program that came with a Python package."""
    return Path(sys.executable).with_name(name)


def run(*command, **options):
    """Runs a tool that has to succeed, and gives what it prints."""
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, **options)
    assert ran.returncode == 0, f"{command}\n{ran.stdout}{ran.stderr}"
    return ran.stdout
