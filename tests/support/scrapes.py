"""What `/metrics` says, read as Prometheus reads it, and what queries ask of it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import httpx
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from dearkd_api.job_metrics import KEPT_SECONDS as KEPT_SECONDS

ADDED = frozenset({"instance", "job"})
"""Labels that Prometheus adds itself."""

_WORDS = frozenset("by without on ignoring group_left group_right and or unless bool offset".split())  # noqa: SIM905
_GROUPED = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\s*(?:\{([^}]*)\})?(?!\s*\(|\w)")
_MATCHER = re.compile(r'\s*(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"\s*(?:,|$)')


@dataclass(frozen=True)
class Scrape:
    """One answer of `/metrics`."""

    families: list[Metric]

    def value(self, name: str, **labels: str) -> float:
        """The value of the one sample of that name with these labels; 0 where there is none (yet)."""
        found = [s.value for s in self.samples(name) if s.labels == labels]
        assert len(found) <= 1
        return found[0] if found else 0.0

    def samples(self, name: str):
        return [sample for family in self.families for sample in family.samples if sample.name == name]


def scrape(http: httpx.Client) -> Scrape:
    answer = http.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return Scrape(list(text_string_to_metric_families(answer.text)))


def selectors(query: str) -> tuple[list[tuple[str, Mapping[str, str]]], set[str]]:
    """The metrics that a PromQL query names, each with its matchers (by label), and its other labels."""
    grouped = {label.strip() for labels in _GROUPED.findall(query) for label in labels.split(",") if label.strip()}
    bare = re.sub(r"\[[^\]]*\]", "", _GROUPED.sub(" ", query))
    found: list[tuple[str, Mapping[str, str]]] = []
    for name, matchers in _SELECTOR.findall(bare):
        if name in _WORDS:
            continue
        parts = _MATCHER.findall(matchers)
        assert len(parts) == len([part for part in re.split(r",(?=\s*\w+\s*[=!])", matchers) if part.strip()]), query
        found.append((name, {label: value for label, _, value in parts}))
    return found, grouped


def faults(query: str, legend: str, answer: Scrape) -> list[str]:
    """What a query or its legend names that the answer does not have."""
    metrics, grouped = selectors(query)
    found = [f"{query!r} names no metric"] if not metrics else []
    for name, matchers in metrics:
        samples = answer.samples(name)
        known = {label for sample in samples for label in sample.labels} | ADDED
        if not samples:
            found.append(f"there is no metric {name}")
            continue
        found += [f"{name} has no label {label}" for label in {*matchers, *grouped} - known]
        for label, pattern in matchers.items():
            if label in known and not any(re.fullmatch(pattern, s.labels.get(label, "")) for s in samples):
                found.append(f"no {label} of {name} is {pattern}")
    shown = set(re.findall(r"\{\{\s*(\w+)\s*\}\}", legend))
    return found + [f"the legend shows {label}, by which nothing is grouped" for label in shown - grouped]
