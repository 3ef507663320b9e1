"""Several processes: they learn what one does, and end together."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dearkd.data.shard_files import Sample, write_shard
from dearkd.errors import CorruptData
from dearkd.specs import TrainingSpec
from dearkd.vision.images import encode
from dearkd.work.attempt import Died
from dearkd_trainer.service import group as group_module
from dearkd_trainer.service.inputs import RunInputs
from dearkd_trainer.service.process_group import ProcessGroup
from dearkd_trainer.train.trainer import Metrics, TrainingResult
from tests.support.bars import STEPS, TASK, TEACHER, MakeSpec, bars, curve

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]

MakeInputs = Callable[[TrainingSpec, str], RunInputs]


@dataclass
class Diary:
    """A reporter that writes down what it hears, and does something at a step."""

    at_step: dict[int, Callable[[], None]] = field(default_factory=dict)
    rows: list[Metrics] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    begun_at: int = 0
    checkpoints: int = 0

    def begin(self, history: list[Metrics], step: int, images: int) -> None:
        assert len(history) == step // STEPS
        assert images == 54  # of 60, a tenth held out
        self.begun_at = step

    def on_step(self, step: int, steps: int) -> None:
        self.steps.append(step)
        self.at_step.get(step, lambda: None)()

    def on_epoch(self, row: Metrics) -> None:
        self.rows.append(row)

    def on_checkpoint(self, path: Path) -> None:
        self.checkpoints += path.exists()


@pytest.fixture
def make_inputs(teacher: nn.Module, bar_shard: Path, tmp_path: Path) -> MakeInputs:
    def make(spec: TrainingSpec, name: str) -> RunInputs:
        weights = tmp_path / "teacher.safetensors"
        save_file(teacher.state_dict(), weights)
        (tmp_path / name).mkdir(exist_ok=True)
        # An odd number, which two processes cannot share evenly.
        held_out = tmp_path / "held-out.tar"
        write_shard(held_out, (Sample(f"{n}", encode(x, "png"), "png", y, {}) for n, (x, y) in enumerate(bars(61))))
        return RunInputs(
            spec=spec,
            directory=tmp_path / name,
            shards=[bar_shard],
            eval_shards=[held_out],
            task=TASK.model_copy(update={"class_names": ["low", "middle", "high"]}),
            teacher=TEACHER,
            teacher_weights=weights,
        )

    return make


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    assert not ranks()


def ranks() -> dict[int, psutil.Process]:
    """Those that are alive below this process."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "dearkd_trainer.service.rank" in process.cmdline() and "RANK" in (environment := process.environ()):
                found.setdefault(int(environment["RANK"]), process)
    return found


def run(inputs: RunInputs, diary: Diary) -> TrainingResult:
    with ProcessGroup(inputs, device="cpu", threads=1, check=lambda: None, note=print) as group:
        return group.run(diary)


class Torchrun:
    """One that runs on."""

    def poll(self) -> None:
        return None


def failed(kind: str, message: str) -> dict[str, Any]:
    return {"what": "failed", "type": kind, "message": message, "code": None, "errors": [], "traceback": "…"}


LOST_PEER, LOST_LOADER = failed("RuntimeError", "connection closed by peer"), failed("LoaderLost", "killed by signal")


@pytest.mark.parametrize(
    ("first", "others", "ends_in", "says"),
    [
        (LOST_PEER, [(1, failed("CorruptData", "a.tar: sample '7'"))], CorruptData, "sample '7'"),
        (LOST_LOADER, [(1, failed("CorruptData", "a.tar: sample '7'"))], CorruptData, "sample '7'"),
        (LOST_PEER, [(1, LOST_LOADER)], Died, "read the images of rank 1: killed by signal"),
        (LOST_LOADER, [(1, LOST_PEER)], Died, "read the images of rank 0: killed by signal"),
        (LOST_LOADER, [(1, None)], Died, "lost rank 1"),
        (LOST_PEER, [(1, None)], Died, "lost rank 1"),
        (LOST_PEER, [(1, failed("ValueError", "nonsense")), (1, None)], RuntimeError, "rank 0 failed: RuntimeError"),
        (LOST_PEER, [], RuntimeError, "connection closed by peer"),
    ],
)
def test_the_reason_that_a_process_tells_comes_before_that_of_one_that_only_lost_it(
    make_spec: MakeSpec,
    make_inputs: MakeInputs,
    monkeypatch: pytest.MonkeyPatch,
    first: dict[str, Any],
    others: list[tuple[int, dict[str, Any] | None]],
    ends_in: type[Exception],
    says: str,
) -> None:
    monkeypatch.setattr(group_module, "CAUSE_SECONDS", 0.2)
    group = ProcessGroup(
        make_inputs(make_spec(processes=2), "run"), device="cpu", threads=1, check=lambda: None, note=print
    )
    monkeypatch.setattr(group, "_launched", Torchrun(), raising=False)
    for told in [(0, first), *others]:
        group._inbox.put(told)
    with pytest.raises(ends_in, match=says) as caught:
        group.run(Diary())
    assert type(caught.value) is ends_in


def test_two_processes_do_what_one_does_and_go_on_from_where_they_were_ended(
    make_spec: MakeSpec, make_inputs: MakeInputs
) -> None:
    # Ragged batches (54 images by 16), mixing and averaging are on; what each process draws for itself is off.
    student = {"drop_path_rate": 0.0, "mhca_dropout": 0.0, "distilled": True}
    common = {"student": student, "optimizer": {"model_ema_half_life": 1.0}, "augmentation": {"mixup": 0.5}}
    one = make_inputs(make_spec(**common), "one").trainer(
        torch.device("cpu"), on_step=lambda *_: None, on_epoch=lambda _: None, on_checkpoint=lambda _: None
    )
    alone = one.fit()
    diary = Diary()
    # Each process computes its share in parts: gradients travel with the last of them alone.
    shared = common | {"processes": 2, "grad_accum_steps": 2}
    together = run(make_inputs(make_spec(**shared), "two"), diary)
    assert diary.steps == list(range(1, 4 * STEPS + 1))
    assert diary.rows == together.history
    assert diary.checkpoints == 4
    for mine, theirs in zip(curve(alone.history), curve(together.history), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-6)
    assert together.evaluation is not None
    assert alone.evaluation is not None
    assert together.evaluation.samples == 61
    assert together.evaluation.confusion == alone.evaluation.confusion
    expected = load_file(alone.weights)
    for name, tensor in load_file(together.weights).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)

    spec = make_spec(**shared, checkpoint_seconds=1e-9)
    disturbed = make_inputs(spec, "disturbed")
    diary = Diary({2 * STEPS + 3: lambda: os.kill(ranks()[1].pid, signal.SIGKILL)})
    with pytest.raises(Died, match="lost rank 1 of the run's 2 processes"):
        run(disturbed, diary)
    saved = diary.steps[-1]
    assert saved >= 2 * STEPS + 3
    diary = Diary()
    result = run(disturbed, diary)
    assert diary.begun_at in (saved - 1, saved)
    assert diary.steps[0] == diary.begun_at + 1
    assert curve(result.history) == curve(together.history)
    undisturbed = load_file(together.weights)
    assert all(torch.equal(tensor, undisturbed[name]) for name, tensor in load_file(result.weights).items())


def test_what_one_process_cannot_read_ends_the_run_with_its_reason(
    make_spec: MakeSpec, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.tar"
    samples = [(encode(image, "png"), label) for image, label in bars(60)]
    samples[7] = (samples[7][0][:40], samples[7][1])
    write_shard(broken, (Sample(f"{n:04d}", data, "png", label, {}) for n, (data, label) in enumerate(samples)))
    inputs = make_inputs(make_spec(processes=2), "run").model_copy(update={"shards": [broken]})
    with pytest.raises(CorruptData, match=r"broken.tar: sample '0007'"):
        run(inputs, Diary())
