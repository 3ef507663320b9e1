"""The project's papers, cut into what tests can check: code blocks, commands, tables."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


PAGES = tuple(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md")))
"""The site's pages."""
MANUAL = ("README.md", *PAGES)
"""What users read: all commands, calls and snippets in it must work."""
PAPERS = (*MANUAL, "DESIGN.md", "CONTRIBUTING.md", "CHANGELOG.md")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The contents of all fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def shell_lines(text: str) -> list[str]:
    """The commands of all bash blocks, each on one line; comments are left out."""
    lines = "\n".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    whole: list[str] = []
    rest = ""
    for line in lines:
        if not rest and (not line.strip() or line.lstrip().startswith("#")):
            continue
        rest = f"{rest} {line.strip()}".strip()
        if rest.count("'") % 2 == 0:  # else a quoted argument goes on on the next line
            whole.append(rest)
            rest = ""
    assert not rest, f"a quote is not closed: {rest}"
    return whole


@dataclass(frozen=True)
class Call:
    """A curl command: method, path and query under `$DEARKD_URL`, JSON of `--json`, and form parts by name."""

    line: str
    method: str
    path: str
    query: list[str]
    body: str | None
    form: dict[str, str]


def curl_calls(text: str) -> list[Call]:
    """All curl commands on the API, shell variables replaced by `ID`."""
    calls = []
    for line in shell_lines(text):
        for command in re.findall(r"\bcurl .*?(?=\s\||\)?$)", line):
            url = re.search(r"\$DEARKD_URL(/[^\s\"?]*)(?:\?([^\s\"]*))?", command)
            assert url, f"no $DEARKD_URL in {command}"
            words = shlex.split(command)
            given = [(words[i - 1], word) for i, word in enumerate(words) if i]
            form = dict(word.split("=", 1) for option, word in given if option == "-F")
            body = next((word for option, word in given if option == "--json"), None)
            sends = form or body or "--data-binary" in words
            method = next((word for option, word in given if option == "-X"), "POST" if sends else "GET")
            path = re.sub(r"\$[A-Z]+", "ID", url[1])
            query = [pair.partition("=")[0] for pair in (url[2] or "").split("&") if pair]
            calls.append(Call(command, method, path, query, body and re.sub(r"\$[A-Z]+", "ID", body), form))
    return calls


def table(text: str, heading: str = "") -> list[list[str]]:
    """The cells of the first table under a `## heading`, or of the whole text, without the table's head."""
    section = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0] if heading else text
    rows = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)[0].splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]
