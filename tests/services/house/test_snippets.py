"""What the papers and the cards show runs in a process of its own, and never imports timm before dearkd."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dearkd.specs import StudentSpec, Task
from dearkd_trainer.model.export import model_config, save_model
from dearkd_trainer.model.student import create_student
from dearkd_trainer.record import card
from tests.support.documents import PAPERS, blocks, read
from tests.support.programs import run_program

STUDENT = StudentSpec(
    architecture="dearkd_micro_patch8_32",
    image_size=32,
    patch_size=8,
    embed_dim=32,
    depth=2,
    num_heads=2,
    mhca_blocks=1,
    drop_path_rate=0.0,
    distilled=True,
)


def run(code: str, folder: Path) -> None:
    done = run_program(code, cwd=folder)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an exported student in `student`."""
    student = create_student(STUDENT, num_classes=10, in_chans=3)
    task = Task(num_classes=10, in_chans=3, image_size=32, mean=[0.5] * 3, std=[0.5] * 3)
    config = model_config(STUDENT, student, task)
    save_model(tmp_path / "student", student, config)
    return tmp_path


@pytest.mark.parametrize("paper", [*PAPERS, "the model's card"])
def test_no_snippet_imports_timm_before_dearkd(paper: str) -> None:
    text = card.USE if paper == "the model's card" else read(paper)
    for block in blocks(text, "python"):
        modules = re.findall(r"^(?:from|import) (\w+)", block, re.MULTILINE)
        if "timm" in modules:
            assert any(name.startswith("dearkd_") for name in modules[: modules.index("timm")]), block


def test_an_export_loads_as_shown(folder: Path) -> None:
    (snippet,) = (block for block in blocks(read("docs/export.md"), "python") if "local-dir:" in block)
    run(snippet.replace('"deit_tiny_patch16_224", pretrained=True', '"deit_tiny_patch16_224"'), folder)  # no download


def test_a_models_card_loads_it_as_shown(folder: Path) -> None:
    (snippet,) = blocks(card.USE, "python")
    command = [sys.executable, "-c", snippet.replace("FOLDER", "student")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("way", ["dearkd", "safetensors"])
def test_a_teacher_in_channels_last_is_saved_as_shown(tmp_path: Path, way: str) -> None:
    text = read("docs/teachers.md")
    if way == "dearkd":
        (snippet,) = (block for block in blocks(text, "python") if "save_teacher(model" in block)
    else:
        (line,) = re.findall(r"^`(save_file\(.*\))`\.$", text, re.MULTILINE)
        snippet = f"from safetensors.torch import save_file\n{line}"
    model = """
import dearkd.vision
import timm, torch
model = timm.create_model("test_resnet", num_classes=5).to(memory_format=torch.channels_last)
"""
    check = """
from pathlib import Path
from dearkd.specs import TeacherSpec
from dearkd.vision.teachers import describe_teacher
numbers = {"num_classes": 5, "in_chans": 3, "image_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}
spec = TeacherSpec(name="t", architecture="test_resnet", **numbers)
describe_teacher(spec, Path("teacher.safetensors"))
"""
    run(model + snippet + check, tmp_path)


def test_the_librarys_example_runs_as_shown_but_for_its_size(tmp_path: Path) -> None:
    (snippet,) = (block for block in blocks(read("docs/library.md"), "python") if "write_samples" in block)
    small = '{"teacher": "digits", "images_per_class": 4, "phases": [{"resolution": 12, "iterations": 2}]}'
    short = '{"dataset": "digits", "stage_one": {"epochs": 1}, "stage_two": {"epochs": 1}}'
    cut = snippet.replace('{"teacher": "digits"}', small).replace('{"dataset": "digits"}', short)
    assert cut.count(small) == cut.count(short) == 1
    run(TEACHER + cut, tmp_path)
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_the_one_calls_example_runs_as_shown_but_for_its_size(tmp_path: Path) -> None:
    (snippet,) = (block for block in blocks(read("docs/library.md"), "python") if "distill(" in block)
    # Little work in much time: in a time that little work fits into on one machine, on a busy one it does not.
    few = "{'min_teacher_accuracy': 0, 'images_per_class': 2, 'phases': [{'resolution': 32, 'iterations': 2}]}"
    short = "{'stage_one': {'epochs': 1}, 'stage_two': {'epochs': 1}}"
    cut = snippet.replace("budget=1800", f"budget=600, synthesis={few}, training={short}")
    assert cut != snippet
    run(TEACHER + cut, tmp_path)
    assert (tmp_path / "student" / "model.safetensors").exists()


TEACHER = """
from pathlib import Path
from dearkd.vision.teachers import save_teacher
import timm, torch
torch.manual_seed(0)
Path("dearkd-data/demo").mkdir(parents=True)
model = timm.create_model("resnet10t", num_classes=10, in_chans=1)
model(torch.rand(64, 1, 32, 32))  # statistics that noise has
save_teacher(model, Path("dearkd-data/demo/teacher.safetensors"))
"""
