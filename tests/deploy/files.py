"""Paths of the files under test, and functions that run the tools."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def tool(name):
    """The path of a program that a Python package installed."""
    return Path(sys.executable).with_name(name)


def run(*command, **options):
    """Runs a tool that must succeed, and returns its output."""
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, **options)
    assert ran.returncode == 0, f"{command}\n{ran.stdout}{ran.stderr}"
    return ran.stdout
