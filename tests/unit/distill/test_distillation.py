"""One call from a CNN to a student: resumed where it was stopped, refused before anything is made."""

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

import dearkd
from dearkd.data.shard_files import shard_name
from dearkd.errors import Conflict, InvalidInput, Unavailable
from dearkd.vision.teachers import save_teacher
from dearkd_distill import Distillation, distill
from dearkd_synth import DeepInversion
from dearkd_trainer import DearKDTrainer
from dearkd_trainer.model.export import load_model
from dearkd_trainer.train.failures import LoaderLost
from tests.support.report_pages import read_page, require_alone
from tests.support.teacher_files import small

pytestmark = pytest.mark.slow

TASK: dict[str, Any] = {"image_size": 32, "mean": [0.5] * 3, "std": [0.25] * 3}
SYNTHESIS = {
    "images_per_class": 4,
    "shard_samples": 10,
    "phases": [{"resolution": 16, "iterations": 3}],
    "min_teacher_accuracy": 0.0,
}
TRAINING = {"batch_size": 10, "stage_one": {"epochs": 1}, "stage_two": {"epochs": 1}, "optimizer": {"warmup_epochs": 0}}

Run = Callable[..., Distillation]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(out: str, teacher: Any = None, **changes: Any) -> Distillation:
        quiet = Console(quiet=True)
        arguments = {"synthesis": SYNTHESIS, "training": TRAINING, "console": quiet, **TASK} | changes
        return distill(teacher or small(), tmp_path / out, **arguments)

    return run


def photographs(folder: Path, classes: int, each: int) -> Path:
    for label in range(classes):
        (folder / str(label)).mkdir(parents=True)
        for number in range(each):
            Image.new("RGB", (32, 32), (40 * label, 10 * number, 99)).save(folder / str(label) / f"{number}.png")
    return folder


def state_of(out: Distillation) -> dict[str, torch.Tensor]:
    return dict(out.student.state_dict())


def test_a_stopped_one_goes_on_and_ends_as_one_that_was_left_alone(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run("whole")
    make = DeepInversion.shard

    def stopped(self: DeepInversion, index: int) -> Any:
        if index == 1:
            raise KeyboardInterrupt
        return make(self, index)

    monkeypatch.setattr(DeepInversion, "shard", stopped)
    with pytest.raises(KeyboardInterrupt):
        run("stopped")
    first = tmp_path / "stopped" / "images" / shard_name(0)
    made = first.stat().st_mtime_ns
    assert not (tmp_path / "stopped" / "images" / shard_name(1)).exists()
    made_again: list[int] = []
    monkeypatch.setattr(DeepInversion, "shard", lambda self, index: made_again.append(index) or make(self, index))
    again = run("stopped")
    assert made_again == [1]
    assert first.stat().st_mtime_ns == made
    for name, tensor in state_of(whole).items():
        assert torch.equal(tensor, state_of(again)[name]), name
    for index in range(2):
        name = shard_name(index)
        ours, theirs = (tmp_path / folder / "images" / name for folder in ("whole", "stopped"))
        assert ours.read_bytes() == theirs.read_bytes()
    # What is finished is given at once.
    finished = run("whole")
    assert made_again == [1]
    assert finished.report["quality"] == whole.report["quality"]


def test_a_shard_that_was_cut_short_since_is_made_again(run: Run, tmp_path: Path) -> None:
    run("out")
    shard = tmp_path / "out" / "images" / shard_name(1)
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-512])
    run("out")
    assert shard.read_bytes() == whole


def test_what_a_stop_after_the_last_shard_has_left_out_is_made_up(run: Run, tmp_path: Path) -> None:
    whole = run("out").report["quality"]
    state = tmp_path / "out" / "distillation.json"
    kept = {name: value for name, value in json.loads(state.read_text()).items() if name != "quality"}
    state.write_text(json.dumps(kept))
    (tmp_path / "out" / "images" / "_info.json").unlink()
    assert run("out").report["quality"] == whole
    assert (tmp_path / "out" / "images" / "_info.json").exists()


def test_a_call_that_was_refused_does_not_stand_in_the_way_of_the_right_one(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="has 3 classes"):
        run("out", images=photographs(tmp_path / "less", 3, 2), synthesis=None)
    with pytest.raises(InvalidInput, match="did you mean 'seed'"):
        run("never", synthesis={"sed": 1})
    assert not (tmp_path / "never").exists()
    assert run("out", images=photographs(tmp_path / "real", 5, 6), synthesis=None).directory == tmp_path / "out"


def test_labels_in_another_order_than_the_teachers_are_refused(run: Run, tmp_path: Path) -> None:
    run("made", class_names=list("abcde"))
    shards = tmp_path / "made" / "images"
    (shards / "class_names.json").write_text(json.dumps(list("bacde")))
    with pytest.raises(InvalidInput, match="another order"):
        run("out", images=shards, synthesis=None, class_names=list("abcde"))


def test_the_network_that_is_given_stays_as_it_is(run: Run) -> None:
    network = small().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    run("out", network)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_two_at_once_in_one_folder_are_refused(run: Run, tmp_path: Path) -> None:
    import fcntl

    run("out")
    with (tmp_path / "out" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Conflict, match="another process works in"):
            run("out")


def test_the_folder_is_a_model_that_answers_as_the_student(run: Run, tmp_path: Path) -> None:
    done = run("out", evaluate_on=photographs(tmp_path / "real", 5, 2))
    assert done.top1 is not None
    assert done.report["accuracy"] == {"top1": done.top1}
    config = json.loads((done.directory / "config.json").read_text())
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loaded = load_model(config, done.directory / "model.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), done.student(images))
    left = {"README.md", "samples.png", "report.html", "preview.png", "distillation.json"}
    assert left <= {path.name for path in done.directory.iterdir()}
    report = read_page((done.directory / "report.html").read_text(encoding="utf-8"))
    require_alone(report)
    assert f"that the teacher gives their label\n{done.report['quality']['teacher_accuracy']:,.4g}\n" in report.text
    assert f"top-1\n{done.top1:.2%}\n" in report.text


def test_a_file_gives_what_the_network_gives(run: Run, tmp_path: Path) -> None:
    save_teacher(small(), tmp_path / "cnn.safetensors")
    from_file = run("a", tmp_path / "cnn.safetensors", architecture="test_resnet", name="t")
    from_memory = run("b", name="t")
    for name, tensor in state_of(from_file).items():
        assert torch.equal(tensor, state_of(from_memory)[name]), name


def test_of_a_file_with_two_networks_the_one_that_is_named_is_taken(run: Run, tmp_path: Path) -> None:
    other = {name: tensor + 1 for name, tensor in small().state_dict().items()}
    torch.save({"student": other, "teacher": small().state_dict()}, tmp_path / "both.pth")
    with pytest.raises(InvalidInput, match=r"student.*teacher|teacher.*student"):
        run("refused", tmp_path / "both.pth")
    named = run("a", tmp_path / "both.pth", state_dict="teacher", name="t")
    from_memory = run("b", name="t")
    for name, tensor in state_of(from_memory).items():
        assert torch.equal(tensor, state_of(named)[name]), name


def test_real_images_take_the_place_of_made_ones(run: Run, tmp_path: Path) -> None:
    done = run("out", images=photographs(tmp_path / "real", 5, 6), synthesis=None)
    assert done.report["training"]["dataset"] == "images"
    assert "quality" not in done.report
    assert not (done.directory / "preview.png").exists()
    with pytest.raises(InvalidInput, match=r"has 3 classes, but .* tells 5 apart"):
        run("other", images=photographs(tmp_path / "less", 3, 2), synthesis=None)


@pytest.fixture
def slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One on which an image takes a second to make, and a hundredth of one in each epoch."""
    monkeypatch.setattr("dearkd_distill.distillation.measure_synthesis", lambda *_: 1.0)
    monkeypatch.setattr("dearkd_distill.distillation.measure_training", lambda *_: 0.01)


def log() -> Console:
    """A console that is no terminal, such as a file that a job writes to."""
    return Console(file=StringIO(), width=200)


def lines(console: Console) -> list[str]:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.usefixtures("slow_machine")
def test_a_budget_that_allows_less_than_was_asked_for_says_so_and_is_kept(run: Run) -> None:
    said = log()
    done = run("out", budget=15.0, console=said)
    assert done.report["synthesis"]["images_per_class"] == 2
    assert "2 images of each of 5 classes, 2 epochs" in lines(said)
    assert any("without a budget it would be 4 and 2, in about 0:24" in line for line in lines(said))


@pytest.mark.usefixtures("slow_machine")
def test_a_budget_holds_for_real_images_too(run: Run, tmp_path: Path) -> None:
    said = log()
    more = TRAINING | {"stage_one": {"epochs": 30}, "stage_two": {"epochs": 10}}
    done = run(
        "out", images=photographs(tmp_path / "real", 5, 6), synthesis=None, training=more, budget=1.5, console=said
    )
    stages = [done.report["training"][stage]["epochs"] for stage in ("stage_one", "stage_two")]
    assert stages == [3, 1]
    assert "30 images, 4 epochs; without a budget it would be 40" in lines(said)


def test_a_log_shows_how_far_it_is(run: Run) -> None:
    said = log()
    run("out", console=said)
    for what, total in (("images", 20), ("training", 4)):
        shown = [line for line in lines(said) if line.startswith(f"{what} ")]
        assert len(shown) in range(3, 11)
        assert shown[-1].startswith(f"{what} {total}/{total}, ")


def test_a_lost_reader_is_no_fault_of_ours_and_the_same_call_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:

        def lost(_: DearKDTrainer) -> Any:
            raise LoaderLost("DataLoader worker (pid 7) is killed by signal: Killed.")

        patched.setattr(DearKDTrainer, "fit", lost)
        with pytest.raises(Unavailable, match=r"pid 7.*the same call goes on"):
            run("out")
    assert run("out").report["training"]


def test_another_distillation_or_a_full_folder_is_left_alone(run: Run, tmp_path: Path) -> None:
    run("out")
    before = (tmp_path / "out" / "distillation.json").read_bytes()
    with pytest.raises(Conflict, match="another seed"):
        run("out", seed=1)
    other = small()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    with pytest.raises(Conflict, match="another teacher"):
        run("out", other)
    assert (tmp_path / "out" / "distillation.json").read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(Conflict, match="not empty"):
        run("mine")


@pytest.mark.parametrize(
    ("teacher", "changes", "said"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5)), {}, "no Conv2d"),
        ("no-such-file.pth", {}, "does not exist"),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)), {}, "BatchNorm"),
        (None, {"synthesis": {"sed": 1}}, "did you mean 'seed'"),
        (None, {"image_size": 4}, "image_size"),
        (None, {"synthesis": {"budget": {"minutes": 5}}}, "nothing ends the synthesis early here"),
    ],
    ids=["no CNN", "no file", "no BatchNorm", "misspelt", "too small", "minutes"],
)
def test_what_cannot_be_is_refused(run: Run, teacher: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        run("out", teacher, **changes)


def test_a_network_must_say_how_its_images_were_made(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="give image_size, mean, std") as refused:
        distill(nn.Sequential(nn.Conv2d(3, 5, 3)), tmp_path / "out")
    assert refused.value.code == "usage"
    assert not (tmp_path / "out").exists()


def test_the_package_itself_offers_it() -> None:
    assert dearkd.distill is distill
