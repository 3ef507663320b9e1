"""What the README shows must work: settings, commands, calls, Python."""

import ast
import importlib
import inspect
import json
import re
import shlex
from typing import Any

import pytest

from dearkd.cli import application, main
from dearkd.settings import Settings
from dearkd.specs import DatasetFacts, SynthesisSpec, TeacherSpec, TrainingSpec
from dearkd_api.app import create_app
from tests.support.documents import ROOT, Call, blocks, curl_calls, read, shell_lines, table

README = read("README.md")
PAPERS = ("README.md", "DESIGN.md", "docs/method.md", "CHANGELOG.md", "docker-compose.yml", "docker-compose.gpu.yml")
CALLS = curl_calls(README)


def test_the_settings_table_is_the_class() -> None:
    rows = table(README, "Settings")
    documented = {name.strip("`"): default.strip("`") for name, default, _ in rows}
    assert len(documented) == len(rows)
    assert documented == {f"DEARKD_{name.upper()}": str(field.default) for name, field in Settings.model_fields.items()}


def dearkd_commands() -> list[list[str]]:
    """All `dearkd …` in bash blocks and code spans, as words from the command's name on."""
    spans = [span for paper in PAPERS[:3] for span in re.findall(r"`(dearkd [a-z][^`]*)`", read(paper))]
    lines = [line.partition("dearkd ")[2] for line in shell_lines(README) if "/dearkd " in line]
    return [shlex.split(text.removeprefix("dearkd ").replace("[", " ").replace("]", " ")) for text in spans + lines]


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


def test_every_command_is_in_the_readme() -> None:
    named = {words[0] for words in dearkd_commands()}
    app = application()
    assert {group.name for group in app.registered_groups} <= named
    for command in app.registered_commands:
        assert (command.name or getattr(command.callback, "__name__", "")) in named


@pytest.fixture(scope="module")
def openapi(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return create_app(Settings(storage_url=f"file://{tmp_path_factory.mktemp('storage')}")).openapi()


def test_the_readme_shows_the_main_job() -> None:
    shown = {(call.method, call.path.split("/")[2]) for call in CALLS}
    assert {("POST", "teachers"), ("POST", "synthesis-jobs"), ("POST", "training-runs"), ("GET", "models")} <= shown


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
    upload = next(call for call in CALLS if call.form)
    assert set(upload.form) == {"teacher", "weights"}
    return TeacherSpec.check(json.loads(upload.form["teacher"]))


@pytest.mark.parametrize("call", [call for call in CALLS if call.body], ids=lambda call: call.path)
def test_every_body_is_a_spec_that_resolves(call: Call) -> None:
    teacher = shown_teacher()
    posted = json.loads(call.body or "")
    if call.path == "/v1/synthesis-jobs":
        SynthesisSpec.resolve(posted, teacher)
    else:
        assert call.path == "/v1/training-runs"
        facts = DatasetFacts(
            num_samples=2000, num_classes=10, image_size=32, in_chans=1, synthetic=True, mirrored=False
        )
        TrainingSpec.resolve(posted, facts, teacher)


@pytest.mark.parametrize("block", blocks(README, "python"), ids=lambda block: block.splitlines()[0])
def test_what_the_python_imports_exists_and_takes_these_arguments(block: str) -> None:
    tree = ast.parse(block)
    names: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            names |= {alias.name: getattr(module, alias.name) for alias in node.names}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    ours = [node for node in calls if getattr(names.get(node.func.id), "__module__", "").startswith("dearkd")]
    assert ours
    for node in ours:
        keywords = {keyword.arg or "": None for keyword in node.keywords}
        inspect.signature(names[node.func.id]).bind(*[None] * len(node.args), **keywords)


@pytest.mark.parametrize("paper", PAPERS)
def test_links_and_paths_lead_somewhere(paper: str) -> None:
    text = read(paper)
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert ((ROOT / paper).parent / target).exists(), target
    for target in re.findall(r"`((?:services|shared|tests|docs|benchmarks)/[\w./-]+)`", text):
        assert (ROOT / target).exists(), target
