"""Which metrics there are, as the code says, and which an expression reads."""

import re

from files import ROOT

SOURCES = [*ROOT.glob("src/metrics.rs"), *ROOT.glob("src/metrics/*.rs")]


def registered():
    """Names as they are exposed: counters with their suffix, histograms without."""
    names = set()
    for source in SOURCES:
        text = source.read_text()
        kinds = dict(re.findall(r"pub (\w+): (?:Family<\w+, )?(\w+)", text))
        for name, field in re.findall(r'register\(\s*"(\w+)",\s*"[^"]*",\s*metrics\.(\w+)\.clone', text):
            names.add(f"insights_gateway_{name}" + ("_total" if kinds[field] == "Counter" else ""))
    return names


NAMES = registered()


def names_in(expression):
    """The gateway's metrics in a PromQL expression, histograms by their own name."""
    found = set(re.findall(r"\binsights_gateway_\w+", expression))
    return {name if name in NAMES else re.sub(r"_(bucket|sum|count)$", "", name) for name in found}
