"""The notebooks run in a real kernel, at smaller sizes; they are kept in one form, with the outputs of their code."""

import ast
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

from tests.support.documents import ROOT

FOLDER = ROOT / "docs" / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))

Outputs = dict[str, list[Any]]
"""The outputs by the cells' ids."""


def cells(name: str, kind: str = "code") -> list[Any]:
    return [cell for cell in nbformat.read(FOLDER / name, as_version=4).cells if cell.cell_type == kind]


def run(name: str, folder: Path, **sizes: int) -> Outputs:
    """Run a notebook in `folder`, with some constants replaced by a cell behind them, as papermill does."""
    notebook = nbformat.read(FOLDER / name, as_version=4)
    (place,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    known = {target.id for node in ast.parse(notebook.cells[place].source).body for target in node.targets}
    assert set(sizes) <= known
    replaced = "\n".join(f"{constant} = {value}" for constant, value in sizes.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(replaced))
    place_to_run = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3", resources=place_to_run).execute()
    return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def printed(outputs: list[Any]) -> str:
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


def is_picture(outputs: list[Any]) -> bool:
    """True if a PNG was shown (the start of its signature in base64)."""
    return any(output.get("data", {}).get("image/png", "").startswith("iVBORw0KGgo") for output in outputs)


def teacher_accuracy(outputs: Outputs) -> float:
    return float(re.search(r"names ([\d.]+)% of", printed(outputs["train"]))[1]) / 100


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_kept_in_one_form(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert nbformat.writes(notebook) + "\n" == text
    assert notebook.metadata.language_info == {"name": "python"}  # no kernel's version
    for cell in notebook.cells:
        assert re.fullmatch(r"[a-z-]+", cell.id), "a name, which stays when a cell is moved or edited"
        if cell.cell_type == "code":
            assert cell.execution_count is None
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert first.metadata.tags == ["parameters"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_outputs_are_those_of_the_code(name: str) -> None:
    notebook = nbformat.read(FOLDER / name, as_version=4)
    code = "\n\n".join(cell.source for cell in cells(name)).encode()
    assert notebook.metadata.outputs_of == hashlib.sha256(code).hexdigest(), "its code has changed: make notebooks"
    assert any(is_picture(cell.outputs) for cell in cells(name))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_outputs_are_small_and_say_nothing_of_a_machine(name: str) -> None:
    assert (FOLDER / name).stat().st_size < 1_000_000
    for cell in cells(name):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            data = output.get("data", {"text/plain": output.get("text")})
            assert len(data) == 1, "its best form alone"
            ((kind, value),) = data.items()
            if kind != "image/png":
                assert not re.search(r"(?<![\w.])/\w|[A-Z]:\\", value), "a path of the machine that ran it"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_imports_dearkd_before_timm(name: str) -> None:
    for cell in cells(name):
        modules = re.findall(r"^(?:from|import) (\w+)", cell.source, re.MULTILINE)
        if "timm" in modules:
            assert any(module.startswith("dearkd_") for module in modules[: modules.index("timm")]), cell.source


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_links_of_a_notebook_lead_somewhere(name: str) -> None:
    for cell in cells(name, "markdown"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", cell.source):
            assert (FOLDER / target).exists(), target


def test_a_notebook_is_linked_from_the_library() -> None:
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    assert NOTEBOOKS
    assert all(f"](notebooks/{name})" in page for name in NOTEBOOKS)


@pytest.mark.timeout(300)
def test_a_teacher_is_inverted(tmp_path: Path) -> None:
    outputs = run("invert_a_teacher.ipynb", tmp_path, TEACHER_EPOCHS=3, IMAGES_PER_CLASS=3, STEPS=40)
    assert teacher_accuracy(outputs) > 0.8
    for cell in ("shard", "real-grid", "curves", "plain"):
        assert is_picture(outputs[cell]), cell
    table = {
        line[:25].strip(): [float(value) for value in line[25:].split()]
        for line in printed(outputs["compare"]).splitlines()[1:]
    }
    for judge in ("teacher_accuracy", "accuracy of the judge"):
        assert min(table[judge]) > 0.5, "chance is 0.1"
    diverse, plain = table["intra_class_diversity"]
    assert diverse > plain


@pytest.mark.timeout(300)
def test_a_student_is_distilled_with_and_without_data(tmp_path: Path) -> None:
    sizes = {"TEACHER_EPOCHS": 3, "IMAGES_PER_CLASS": 6, "STEPS": 40, "REAL_IMAGES": 60, "EPOCHS": 3}
    outputs = run("distil_with_and_without_data.ipynb", tmp_path, **sizes)
    teacher = teacher_accuracy(outputs)
    assert teacher > 0.8
    assert is_picture(outputs["preview-grid"])
    table = outputs["table"][0].data["text/markdown"]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert [images for _, images, _ in rows] == ["1,257 real images", "60 made images", "60 real images"]
    top1 = [float(value.removesuffix("%")) / 100 for *_, value in rows]
    assert top1[0] == pytest.approx(teacher, abs=1e-3)
    # So short a training teaches a transformer little; the figures are those of the two runs all the same.
    made = tmp_path / "dearkd-data" / "notebook"
    for way, shown in zip(("data-free", "with-data"), top1[1:], strict=True):
        report = json.loads((made / way / "distillation.json").read_text(encoding="utf-8"))
        assert report["accuracy"]["top1"] == pytest.approx(shown, abs=1e-3)
        assert ("quality" in report) == (way == "data-free")
    assert re.search(r"\d, says the folder; \d, says the student", printed(outputs["predict"]))


def test_progress_is_one_output_that_changes(tmp_path: Path) -> None:
    code = """
from rich.console import Console
from dearkd_distill.progress import progress_on

for quiet in (False, True):
    console = Console(stderr=True, quiet=quiet)
    with progress_on(console) as progress:
        bar = progress.add_task("images", total=2000)
        for done in range(2001):
            progress.update(bar, completed=done)
        console.print("a remark")
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3", resources=place).execute()
    bars, remark = notebook.cells[0].outputs
    for kind in ("text/plain", "text/html"):
        assert "2000/2000" in bars.data[kind]
        assert len(bars.data[kind]) < 2000
    assert "a remark" in remark.data["text/plain"]
