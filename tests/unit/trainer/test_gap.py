"""The benchmark of the gap to real images: what its controls keep, what its teacher counts, and what its table says."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dearkd.specs import TeacherSpec

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
MODULES = ("gap", "gap_arms", "gap_figures", "gap_giveaway", "gap_pictures", "keeping", "arms", "manifolds", "tasks")


@pytest.fixture(autouse=True)
def _benchmarks_are_importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


def teacher_spec(**more: Any) -> TeacherSpec:
    fields = {"name": "t", "architecture": "resnet10t", "num_classes": 10, "in_chans": 3, "image_size": 32}
    return TeacherSpec(**(fields | {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]} | more))


def pixels(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("patch", [4, 8])
def test_shuffled_patches_are_the_same_ones_in_another_order(patch: int) -> None:
    from gap_arms import shuffled_patches

    images = pixels(5)
    moved = shuffled_patches(images, patch, seed=1)

    def patches(image: Tensor) -> list[bytes]:
        corners = range(0, 32, patch)
        return [image[:, y : y + patch, x : x + patch].numpy().tobytes() for y in corners for x in corners]

    orders = []
    for before, after in zip(images, moved, strict=True):
        assert sorted(patches(before)) == sorted(patches(after))
        orders.append(tuple(patches(before).index(one) for one in patches(after)))
    assert len(set(orders)) == 5, "each image in its own way"
    assert torch.equal(moved, shuffled_patches(images, patch, seed=1))
    assert not torch.equal(moved, shuffled_patches(images, patch, seed=2))


def test_noise_is_normal_for_the_teacher_or_uniform_in_pixels() -> None:
    from gap_arms import noise

    spec = teacher_spec()
    normal = noise("noise", 200, spec, seed=0).double() / 255
    for channel, (mean, std) in enumerate(zip(spec.mean, spec.std, strict=True)):
        mine = normal[:, channel]
        inside = mine[(mine > 0) & (mine < 1)]
        assert mine.median().item() == pytest.approx(mean, abs=0.005)
        # 68.27 % of a normal distribution lie within one deviation, whatever is cut off further out.
        assert ((mine - mean).abs() < std).double().mean().item() == pytest.approx(0.6827, abs=0.01)
        assert len(inside) < len(mine.flatten())
    counts = noise("uniform", 200, spec, seed=0).flatten().bincount(minlength=256)
    assert counts.min() > 0.9 * counts.double().mean()


def test_restated_statistics_are_those_of_the_images() -> None:
    from arms import Network
    from gap_arms import restated

    from dearkd.vision.teachers import batch_norm_layers, build_teacher

    spec = teacher_spec()
    torch.manual_seed(0)
    model = build_teacher(spec).eval().requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = pixels(400)
    found = restated(Network(model, spec), images, seed=0)

    (name, layer), *others = batch_norm_layers(found.model)
    first_convolution = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    seen = first_convolution((images.float() / 255 - mean) / std).transpose(0, 1).flatten(1)
    torch.testing.assert_close(layer.running_mean, seen.mean(1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(layer.running_var, seen.var(1), atol=0, rtol=0.01)  # a mean of three batches' variances
    assert layer.num_batches_tracked == 3, "of 400 images three batches have 128 or more"
    assert others
    assert layer.momentum is not None
    assert not any(module.training for module in found.model.modules())
    for key, value in found.model.state_dict().items():
        if "running" not in key and "num_batches" not in key:
            assert torch.equal(value, before[key]), key
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), (
        "the given one is as it was"
    )
    assert not torch.equal(found.model.state_dict()[f"{name}.running_mean"], before[f"{name}.running_mean"])


def test_few_images_are_one_batch() -> None:
    from arms import Network
    from gap_arms import restated

    from dearkd.vision.teachers import batch_norm_layers, build_teacher

    spec = teacher_spec()
    found = restated(Network(build_teacher(spec).eval(), spec), pixels(50), seed=0)
    assert {int(layer.num_batches_tracked) for _, layer in batch_norm_layers(found.model)} == {1}


@pytest.mark.parametrize("passes", [2, 20, 200, 1000])
def test_passes_scale_all_that_counts_iterations(passes: int) -> None:
    from gap_arms import with_passes

    for posted, share in (({}, 10), ({"generator": None}, 4)):
        spec = with_passes(posted, teacher_spec(), passes)
        assert spec.teacher_passes == passes * spec.num_samples
        assert spec.unlabelled_iterations == passes // share
    two = [{"resolution": 16, "input_size": 32, "iterations": n} for n in (90, 10)]
    some = with_passes({"phases": two, "warmup_iterations": 10}, teacher_spec(), passes)
    assert sum(phase.iterations for phase in some.phases) == passes
    assert all(phase.iterations >= 1 for phase in some.phases)
    assert some.warmup_iterations == passes // 10


def test_names_of_arms() -> None:
    from gap_arms import ARMS, arm_named

    assert arm_named("ours", ARMS).passes is None
    assert arm_named("ours-20", ARMS) == replace(arm_named("ours", ARMS), passes=20)
    assert arm_named("boundary-3", ARMS).synthesis == {"weights": {"boundary": 3.0}}
    assert arm_named("boundary-3-20", ARMS) == replace(arm_named("boundary-3", ARMS), passes=20)
    known = ARMS | {"own-5": {"images": "ours", "teacher_statistics": "images"}, "odd": {"images": "ours", "weight": 1}}
    assert arm_named("own-5", known).passes is None
    for wrong, what in (("odd", "weight"), ("real-20", "no teacher passes"), ("theirs", "no such arm")):
        with pytest.raises(ValueError, match=what):
            arm_named(wrong, known)


@pytest.mark.parametrize("name", ["digits", pytest.param("photographs", marks=pytest.mark.slow)])
def test_the_validation_part_is_of_training_and_in_no_arms_images(name: str) -> None:
    from gap_arms import parts_of
    from tasks import task

    whole, chosen, final = task(name), parts_of(name, final=False), parts_of(name, final=True)
    assert torch.equal(chosen.images, final.images)
    assert torch.equal(final.held_out_images, whole.held_out_images)
    assert len(chosen.held_out_labels) == len(whole.labels) // 5
    counts = chosen.held_out_labels.bincount(minlength=len(whole.class_names))
    assert counts.min() > 0.8 * counts.double().mean()

    def sorted_bytes(*images: Tensor) -> list[bytes]:
        return sorted(image.numpy().tobytes() for part in images for image in part)

    assert sorted_bytes(chosen.images, chosen.held_out_images) == sorted_bytes(whole.images)


def test_nearest_equals_loops_and_copies_are_given_away() -> None:
    from gap_giveaway import given_away, nearest, pixel_distance

    training, made, held_out = pixels(30), pixels(6, seed=1), pixels(20, seed=2)
    distances, places = nearest(made, training, pixel_distance)
    for image, distance, place in zip(made, distances, places, strict=True):
        by_hand = [((image.double() - other.double()) / 255).square().sum().sqrt().item() for other in training]
        assert place == by_hand.index(min(by_hand))
        assert distance.item() == pytest.approx(min(by_hand), rel=1e-4)
    copies = torch.cat([training[:3], made[:3]])
    assert given_away(copies, held_out, training, pixel_distance)["closer"] == pytest.approx(0.5, abs=0.17)
    found = given_away(training, held_out, training, pixel_distance)
    assert found["closer"] == 1
    assert found["made"] == pytest.approx(0, abs=0.05)
    assert found["held_out"] > 10


def line(arm: str, seed: int, top1: float, **more: Any) -> dict[str, Any]:
    cell = {"task": "digits", "family": "resnet10t", "teacher": "own-0", "part": "validation"}
    facts = {"teacher_saw_part": False, "teacher_top1": 0.98, "judge_top1": 0.97, "images": 100, "epochs": 4}
    figures = {"teacher_accuracy": 1.0, "judge_accuracy": 0.8, "precision": 0.5, "recall": 0.25}
    return cell | facts | figures | {"arm": arm, "seed": seed, "top1": top1, "passes": 0, "setting": arm} | more


def cells_of(row: str) -> list[str]:
    return [part.strip() for part in row.strip("|").split("|")]


def test_the_table_compares_seed_by_seed_with_as_many_real_images(tmp_path: Path) -> None:
    from gap_figures import plot, table

    near = {"nearest_pixels": {"closer": 0.125}, "nearest_features": {"closer": 0.0}}
    lines = [
        *(line("real", seed, top1) for seed, top1 in ((0, 0.90), (1, 0.94), (2, 0.99))),
        line("real", 0, 0.5, images=50, setting="fewer"),
        *(line("ours", seed, top1, passes=200, **near) for seed, top1 in ((0, 0.89), (1, 0.91))),
        line("ours", 0, 0.80, passes=20, setting="ours-20"),
        line("more", 0, 0.95, passes=20, images=400),
        line("real", 0, 0.1, part="test"),
    ]
    validation, test = re.split(r"\n(?=digits)", table(lines))
    rows = {tuple(cells_of(row)[:3]): cells_of(row) for row in validation.splitlines() if row.startswith("|")}
    head = rows[("arm", "passes", "images")]
    ours = dict(zip(head, rows[("ours", "200", "100")], strict=True))
    assert ours["top-1"] == "90.0 ± 1.0"
    assert ours["to real"] == "-2.0 (-3.0 to -1.0)"
    assert (ours["seeds"], ours["label"], ours["judge"], ours["recall"]) == ("2", "100%", "80%", "0.25")
    assert (ours["closer in pixels"], ours["in features"]) == ("12.5%", "0.0%")
    assert rows[("ours", "20", "100")][head.index("to real")] == "-10.0"
    assert rows[("more", "20", "400")][head.index("to real")] == "–", "no real images of that number"
    assert rows[("real", "–", "100")][head.index("top-1")] == "94.3 ± 3.7"
    assert "test part" in test
    assert "10.0 ± 0.0" in test
    plot(lines, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5_000


@pytest.mark.slow
def test_one_process_makes_a_value_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    from keeping import Busy, kept

    path = tmp_path / "value.json"
    program = (
        f"import sys, time; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "from pathlib import Path; from keeping import kept\n"
        f"kept(Path({str(path)!r}), lambda: (print('making', flush=True), time.sleep(60)))"
    )
    other = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "making\n"
        with pytest.raises(Busy):
            kept(path, lambda: 1, wait=False)
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        began = time.monotonic()
        assert kept(path, lambda: {"made": 2}, wait=False) == {"made": 2}
        assert time.monotonic() - began < 10
    finally:
        other.kill()
        other.wait()
    assert json.loads(path.read_text()) == {"made": 2}
    assert kept(path, lambda: pytest.fail("it is there")) == {"made": 2}
    assert [entry.name for entry in tmp_path.iterdir() if entry.name != "locks"] == ["value.json"]


@pytest.mark.slow
def test_cells_are_made_once_and_arms_share_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import gap

    arms = tmp_path / "arms.json"
    arms.write_text(json.dumps({"restated": {"images": "ours", "teacher_statistics": "images"}}))
    small = ["--images", "20", "--epochs", "1", "--passes", "2", "--network-passes", "2000"]
    ask = ["gap.py", "--folder", str(tmp_path / "gap"), "--cells", "digits:resnet10t", "--arm-file", str(arms), *small]
    wanted = ["--arms", "real", "ours", "restated", "shuffled"]
    monkeypatch.setattr(sys, "argv", [*ask, *wanted])
    gap.main()
    first = capsys.readouterr().out
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "gap").rglob("*") if path.is_file()}
    assert len([path for path in made if path.parent.name == "images" and path.suffix == ".pt"]) == 1
    lines = {line["arm"]: line for line in gap.lines_of(tmp_path / "gap")}
    assert {name: lines[name]["passes"] for name in lines} == {"real": 0, "ours": 2, "restated": 2, "shuffled": 2}
    trained = [line["settings"]["training"] for line in lines.values()]
    assert all(one == trained[0] for one in trained), "one student, whatever the images are"
    # Images of two passes are far from digits: with their statistics the teacher, which knows most digits, knows few.
    assert lines["restated"]["labelling_teacher_top1"] != lines["ours"]["labelling_teacher_top1"]

    gap.main()
    assert capsys.readouterr().out.splitlines() == first.splitlines()[2:], "but for the two networks' training"
    assert all(path.stat().st_mtime_ns == when for path, when in made.items() if path.parent.name != "locks")

    monkeypatch.setattr(sys, "argv", [*ask, "--table"])
    gap.main()
    assert capsys.readouterr().out.count("| restated | 2 | 20 | 1 |") == 1
