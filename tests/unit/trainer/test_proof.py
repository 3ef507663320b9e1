"""The benchmark of DearKD's parts: that its arms differ in what they are called alone, and what its tables say."""

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dearkd.specs import DatasetFacts, TeacherSpec, TrainingSpec

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_are_importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in ("proof", "arms", "manifolds", "tasks"):
        sys.modules.pop(name, None)


def resolved(body: dict[str, Any], *, synthetic: bool) -> dict[str, Any]:
    teacher = TeacherSpec(
        name="t", architecture="resnet10t", num_classes=10, in_chans=1, image_size=32, mean=[0.5], std=[0.5]
    )
    facts = DatasetFacts(
        num_samples=1000,
        num_classes=10,
        image_size=32,
        in_chans=1,
        synthetic=synthetic,
        mirrored=False,
        teacher="teacher",
    )
    return TrainingSpec.resolve({"dataset": "images"} | body, facts, teacher).model_dump()


def differing(one: Any, other: Any, where: str = "") -> set[str]:
    if not isinstance(one, dict) or not isinstance(other, dict):
        return {where} if one != other else set()
    return {name for key in one for name in differing(one[key], other[key], f"{where}/{key}")}


@pytest.mark.parametrize("synthetic", [False, True])
def test_each_arm_is_the_one_before_and_one_thing_more(synthetic: bool) -> None:
    from proof import ARMS, posted

    specs = [resolved(posted(arm, 24, 2, None), synthetic=synthetic) for arm in ARMS]
    weights = "/stage_one/weights"
    assert [differing(*pair) for pair in itertools.pairwise(specs)] == [
        {"/stage_one/distillation", f"{weights}/distillation", f"{weights}/classification"},
        {"/student/mhca_blocks"},
        {f"{weights}/hidden"},
        {"/stage_one/epochs", "/stage_two/epochs"},
    ]
    assert {spec["stage_one"]["epochs"] + spec["stage_two"]["epochs"] for spec in specs} == {24}
    assert [spec["stage_one"]["distillation"] for spec in specs[:2]] == ["none", "soft"]
    assert specs[2]["student"]["mhca_blocks"] > 0 < specs[3]["stage_one"]["weights"]["hidden"]
    assert specs[4]["stage_two"]["epochs"] == 2


def test_tables_compare_seed_by_seed() -> None:
    from proof import tables

    def line(arm: str, data: str, seed: int, top1: float) -> dict[str, Any]:
        return {"task": "digits", "arm": arm, "data": data, "seed": seed, "top1": top1, "teacher_top1": 0.99}

    lines = [line("plain", "100", 0, 0.9), line("plain", "100", 1, 0.8), line("plain", "100", 2, 0.7)]
    # The second seed of this arm is still to come.
    lines += [line("deit", "100", 2, 0.75), line("deit", "100", 0, 0.89)]
    lines += [line("dearkd", "50", seed, 0.85) for seed in range(3)]
    rows = tables(lines).splitlines()
    assert "digits: teacher 99.0 ± 0.0, seeds 0, 1, 2" in rows
    assert "| plain ViT | 80.0 ± 8.2 | – |" in rows
    assert "| + logits (DeiT) | 82.0 ± 7.0 | – |" in rows
    assert "| + logits (DeiT) | +2.0 (-1.0 to +5.0) | – |" in rows
    assert "DearKD at 50 % over plain at 100 %: +5.0 (-5.0 to +15.0)" in rows


def test_what_is_done_is_not_done_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import proof

    def never(*_: Any) -> None:
        raise AssertionError("nothing is left to train")

    monkeypatch.setattr(proof, "train_network", never)
    path = tmp_path / "lines.jsonl"

    def run(*options: str) -> str:
        arguments = ("--seeds", "5", "--data", "10", "--arms", "plain", "--lines", str(path), *options)
        monkeypatch.setattr(sys, "argv", ["proof.py", *arguments])
        proof.main()
        return capsys.readouterr().err

    with pytest.raises(AssertionError, match="nothing is left"):
        run()
    used: dict[str, Any] = {"epochs": 36, "stage_two_epochs": 3, "distillation": None, "teacher_epochs": 15}
    used |= {
        "teacher_seed": None,
        "train_per_class": None,
        "images_per_class": None,
        "iterations": None,
        "training": {},
    }
    line = {"task": "digits", "arm": "plain", "data": "10", "seed": 5, "top1": 0.5, "teacher_top1": 1.0}
    path.write_text(json.dumps(line | {"settings": used}) + "\n")
    assert "| plain ViT | 50.0 ± 0.0 |" in run()
    with pytest.raises(AssertionError, match="nothing is left"):
        run("--also", "100:dearkd")
    with pytest.raises(SystemExit, match="other settings"):
        run("--epochs", "35")
