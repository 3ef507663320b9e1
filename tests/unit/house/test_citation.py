"""CITATION.cff, package and changelog are of one version, and name the methods."""

import re
import tomllib
from datetime import date
from typing import Any

import yaml

from tests.support.documents import read

CITATION: dict[str, Any] = yaml.safe_load(read("CITATION.cff"))
PROJECT: dict[str, Any] = tomllib.loads(read("pyproject.toml"))["project"]


def named(person: dict[str, Any]) -> bool:
    """Whether it is a person or an entity of the Citation File Format."""
    return set(person) == {"name"} or {"family-names", "given-names"} <= set(person)


def test_it_has_what_version_1_2_asks_for() -> None:
    assert {"cff-version", "message", "title", "authors"} <= set(CITATION)  # the fields that the format requires
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["type"] == "software"
    assert CITATION["license"] == PROJECT["license"]
    assert isinstance(CITATION["date-released"], date)
    assert all(map(named, CITATION["authors"]))


def test_it_is_of_the_packages_version_as_the_changelog_is() -> None:
    assert CITATION["version"] == PROJECT["version"]
    headings = re.findall(r"^## \[([^]]+)\](?: - (\S+))?$", read("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == ("Unreleased", "")
    assert headings[1] == (PROJECT["version"], CITATION["date-released"].isoformat())


def test_it_names_the_methods_as_the_papers_do() -> None:
    for reference in CITATION["references"]:
        assert {"type", "title", "authors", "year"} <= set(reference)  # as the format requires, but for the year
        assert all(map(named, reference["authors"]))
    entries = read("docs/method.md")
    shown = re.findall(r"\btitle\s+= \{(.+)\},", entries)
    plain = {title.replace("{", "").replace("}", "") for title in shown}
    assert {reference["title"] for reference in CITATION["references"]} == plain
    for reference in CITATION["references"]:
        assert all(f"{one['family-names']}, {one['given-names']}" in entries for one in reference["authors"])
