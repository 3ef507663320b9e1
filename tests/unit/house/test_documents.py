"""What the README and the pages show must work: settings, commands, routes, calls, Python, links."""

import ast
import importlib
import inspect
import json
import re
import shlex
import tomllib
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from dearkd.cli import application, main
from dearkd.settings import Settings
from dearkd.specs import DatasetFacts, SynthesisSpec, TeacherSpec, TrainingSpec
from dearkd.specs.requests import CheckRequest, KeyRequest
from dearkd_api.app import create_app
from tests.support.documents import MANUAL, PAPERS, ROOT, Call, blocks, curl_calls, read, shell_lines, table

CALLS = list({call.line: call for page in MANUAL for call in curl_calls(read(page))}.values())
# Those for where there is no dearkd run there, in tests/services/trainer/test_export_elsewhere.py.
SNIPPETS = [
    (page, block)
    for page in MANUAL
    for block in blocks(read(page), "python")
    if re.search(r"^(?:from|import) dearkd", block, re.MULTILINE)
]


def test_the_settings_table_is_the_class() -> None:
    rows = table(read("docs/settings.md"))
    documented = {name.strip("`"): default.strip("`") for name, default, _ in rows}
    assert len(documented) == len(rows)
    assert documented == {f"DEARKD_{name.upper()}": str(field.default) for name, field in Settings.model_fields.items()}


def test_settings_that_pages_name_exist() -> None:
    known = {f"DEARKD_{name.upper()}" for name in Settings.model_fields}
    for paper in PAPERS:
        named = set(re.findall(r"`(DEARKD_[A-Z0-9_]+)`", read(paper)))
        assert named <= known, f"{paper}: {named - known}"


def dearkd_commands() -> list[list[str]]:
    """All `dearkd …` in bash blocks and code spans, as words from the command's name on."""
    spans = [span for paper in PAPERS for span in re.findall(r"`(dearkd [a-z][^`]*)`", read(paper))]
    lines = [
        found
        for page in (*MANUAL, "CONTRIBUTING.md")
        for line in shell_lines(read(page))
        for found in re.findall(r"bin/(dearkd [a-z][^|)#]*)", line)
    ]
    return [
        shlex.split(text.removeprefix("dearkd ").replace("[", " ").replace("]", " "))
        for text in dict.fromkeys(spans + lines)
    ]


def help_of(words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "200")  # or options would be cut short
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    shown = capsys.readouterr()
    assert ended.value.code == 0, shown.err
    return shown.out


@pytest.mark.parametrize("words", dearkd_commands(), ids=" ".join)
def test_every_command_that_is_named_exists_with_its_options(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = {group.name for group in application().registered_groups}
    name = words[: 2 if words[0] in groups else 1]
    shown = help_of(name, capsys, monkeypatch)
    assert f"Usage: dearkd {' '.join(name)} " in shown
    for word in words:
        if word.startswith("--"):
            assert re.search(rf"{word}\b", shown), word


def test_every_command_is_on_its_page() -> None:
    named = {words.split()[1] for words in re.findall(r"`(dearkd [a-z][^`]*)`", read("docs/cli.md"))}
    app = application()
    assert {group.name for group in app.registered_groups} <= named
    for command in app.registered_commands:
        assert (command.name or getattr(command.callback, "__name__", "")) in named


@pytest.fixture(scope="module")
def openapi(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return create_app(Settings(storage_url=f"file://{tmp_path_factory.mktemp('storage')}")).openapi()


def test_every_route_is_on_its_page(openapi: dict[str, Any]) -> None:
    routes = {f"{method.upper()} {path}" for path, methods in openapi["paths"].items() for method in methods}
    shown = [route.strip("`") for route, _ in table(read("docs/http.md"), "Routes")]
    assert sorted(shown) == sorted(routes)


@pytest.mark.parametrize("page", ["README.md", "docs/http.md"])
def test_the_main_job_is_shown(page: str) -> None:
    shown = {(call.method, call.path.split("/")[2]) for call in curl_calls(read(page))}
    assert {("POST", "teachers"), ("POST", "synthesis-jobs"), ("POST", "training-runs"), ("GET", "models")} <= shown


def test_every_extra_is_listed() -> None:
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    listed = re.findall(r"`(\w+)`", " ".join(names for names, _ in table(read("docs/quickstart.md"), "Install")))
    assert sorted(listed) == sorted(extras)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call.method} {call.path}")
def test_every_call_exists_in_the_api(call: Call, openapi: dict[str, Any]) -> None:
    segments = call.path.split("/")
    operations = [
        methods[call.method.lower()]
        for path, methods in openapi["paths"].items()
        if call.method.lower() in methods
        and len(path.split("/")) == len(segments)
        and all(a == b or a.startswith("{") for a, b in zip(path.split("/"), segments, strict=True))
    ]
    assert operations, f"{call.method} {call.path} is no route of the API"
    parameters = {parameter["name"] for parameter in operations[0].get("parameters", [])}
    assert set(call.query) <= parameters


def shown_teacher() -> TeacherSpec:
    uploads = [call for call in CALLS if call.form]
    assert all(set(upload.form) == {"teacher", "weights"} for upload in uploads)
    first, *others = (TeacherSpec.check(json.loads(upload.form["teacher"])) for upload in uploads)
    assert all(other == first for other in others)
    return first


@pytest.mark.parametrize("call", [call for call in CALLS if call.body], ids=lambda call: call.path)
def test_every_body_is_a_spec_that_resolves(call: Call) -> None:
    teacher = shown_teacher()
    posted = json.loads(call.body or "")
    if call.path == "/v1/synthesis-jobs":
        SynthesisSpec.resolve(posted, teacher)
    elif call.path == "/v1/teachers/ID/checks":
        CheckRequest.check(posted)
    elif call.path == "/v1/keys":
        KeyRequest.model_validate(posted)
    else:
        assert call.path == "/v1/training-runs"
        facts = DatasetFacts(
            num_samples=2000, num_classes=10, image_size=32, in_chans=1, synthetic=True, mirrored=False
        )
        TrainingSpec.resolve(posted, facts, teacher)


@pytest.mark.parametrize(("page", "block"), SNIPPETS, ids=[f"{page}-{block[:40]!r}" for page, block in SNIPPETS])
def test_what_the_python_imports_exists_and_takes_these_arguments(page: str, block: str) -> None:
    tree = ast.parse(block)
    names: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            names |= {alias.name: getattr(module, alias.name) for alias in node.names}
    calls = [
        (node, node.func.id)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    ours = [(node, name) for node, name in calls if getattr(names.get(name), "__module__", "").startswith("dearkd")]
    assert ours
    for node, name in ours:
        keywords = {keyword.arg or "": None for keyword in node.keywords}
        inspect.signature(names[name]).bind(*[None] * len(node.args), **keywords)


def anchors(path: Path) -> set[str]:
    """The fragments by which a page's headings are linked: GitHub's way, and that of the site, are one for ours."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    plain = (unicodedata.normalize("NFKD", heading).replace("`", "") for heading in headings)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in plain}


@pytest.mark.parametrize("paper", [*PAPERS, "docker-compose.yml"])
def test_links_and_paths_lead_somewhere(paper: str) -> None:
    text = read(paper)
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        name, _, fragment = target.partition("#")
        path = (ROOT / paper).parent / name if name else ROOT / paper
        assert path.exists(), target
        # Behind a picture it says in which colours the site shows it.
        known = anchors(path) if path.suffix == ".md" else {"only-light", "only-dark"}
        assert not fragment or fragment in known, target
    for target in re.findall(r"`((?:services|shared|tests|docs|benchmarks|deploy)/[\w./-]+)`", text):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("page", MANUAL)
def test_a_page_is_linked_from_the_readme_or_the_sites_navigation(page: str) -> None:
    name = page.removeprefix("docs/")
    assert page == "README.md" or f": {name}" in read("mkdocs.yml")
    assert "pypi" not in read(page).lower()
