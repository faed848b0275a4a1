"""Reads the names of the metrics and of their labels from the code, and from PromQL expressions."""

import re

from files import ROOT

SOURCES = [*ROOT.glob("src/metrics.rs"), *ROOT.glob("src/metrics/*.rs")]


# Labels that Prometheus adds.
OF_SCRAPES = {"job", "instance", "namespace", "le"}


def registered():
    """The labels of each metric. Names are as they are exposed: counters with their suffix, histograms without one."""
    text = "\n".join(source.read_text() for source in SOURCES)
    structures = dict(re.findall(r"pub struct (\w+Labels) \{(.*?)\}", text, re.S))
    fields = {field: (labels, kind) for field, labels, kind in re.findall(r"pub (\w+): (?:Family<(\w+), )?(\w+)", text)}
    found = {}
    for field, name in re.findall(r'(\w+): (?:register|histogram)\(\s*r,\s*"(\w+)"', text):
        labels, kind = fields[field]
        name = f"insights_gateway_{name}" + ("_total" if kind == "Counter" else "")
        found[name] = set(re.findall(r"pub (\w+):", structures.get(labels, "")))
    return found


LABELS = registered()
NAMES = set(LABELS)


def words(path):
    """The words of a closed enum."""
    text = (ROOT / path).read_text().split("fn as_str")[1].split("\n    }\n")[0]
    return set(re.findall(r'=> "(\w+)"', text))


# The values of labels that are words of a closed enum.
VALUES = {"outcome": words("src/core/outcome.rs"), "reason": words("src/core/error.rs")}


def names_in(expression):
    """The gateway's metrics in a PromQL expression. A histogram is named without the suffix of its series."""
    found = set(re.findall(r"\binsights_gateway_\w+", expression))
    return {name if name in NAMES else re.sub(r"_(bucket|sum|count)$", "", name) for name in found}


def unknown_in(expression):
    """The labels in a PromQL expression that no metric in it has, and the values that a label never has."""
    unknown = set()
    for name, selector in re.findall(r"\b(insights_gateway_\w+)\{([^}]*)\}", expression):
        (metric,) = names_in(name)
        for label, value in re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"', selector):
            if label not in LABELS[metric] | OF_SCRAPES:
                unknown.add(f"{metric} has no {label}")
            elif metric.endswith(("requests_total", "request_duration_seconds", "_errors_total")) and not value.startswith("$"):
                unknown |= {f"{label} is never {word}" for word in set(value.split("|")) - VALUES.get(label, {*value.split("|")})}
    known = OF_SCRAPES.union(*(LABELS[name] for name in names_in(expression)))
    for grouped in re.findall(r"\b(?:by|on|without|ignoring|group_left|group_right) *\(([^)]*)\)", expression):
        unknown |= {f"nothing has {label}" for label in re.findall(r"\w+", grouped)} - {f"nothing has {label}" for label in known}
    return unknown
