"""Reads the names of the metrics from the code, and from PromQL expressions."""

import re

from files import ROOT

SOURCES = [*ROOT.glob("src/metrics.rs"), *ROOT.glob("src/metrics/*.rs")]


def registered():
    """The names as they are exposed: counters with their suffix, histograms without one."""
    names = set()
    for source in SOURCES:
        text = source.read_text()
        kinds = dict(re.findall(r"pub (\w+): (?:Family<\w+, )?(\w+)", text))
        for name, field in re.findall(r'register\(\s*"(\w+)",\s*"[^"]*",\s*metrics\.(\w+)\.clone', text):
            names.add(f"insights_gateway_{name}" + ("_total" if kinds[field] == "Counter" else ""))
    return names


NAMES = registered()


def names_in(expression):
    """The gateway's metrics in a PromQL expression. A histogram is named without the suffix of its series."""
    found = set(re.findall(r"\binsights_gateway_\w+", expression))
    return {name if name in NAMES else re.sub(r"_(bucket|sum|count)$", "", name) for name in found}
