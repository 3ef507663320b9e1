"""A run that goes on from a checkpoint is the run that was never ended, to the bit."""

import errno
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._pytree import tree_leaves

from dearkd.data.shard_files import Sample, write_shard
from dearkd.errors import CorruptData, Diverged, InvalidInput
from dearkd.specs import TrainingSpec
from dearkd.vision.images import encode
from dearkd.vision.shards import ShardDataset
from dearkd_trainer.train.trainer import TrainingResult
from tests.support.bars import CLASSES, STEPS, TASK, MakeSpec, MakeTrainer, bars, curve, stop_at
from tests.support.programs import run_program

OPTIMIZER = {"lr": 3e-3, "warmup_epochs": 1, "model_ema_half_life": 1.0}
ALWAYS: dict[str, Any] = {"optimizer": OPTIMIZER, "checkpoint_seconds": 1e-9}
"""A checkpoint after every step."""


@pytest.fixture(scope="module")
def once() -> list[TrainingResult]:
    return []


@pytest.fixture
def whole(
    make_spec: MakeSpec, make_trainer: MakeTrainer, once: list[TrainingResult], tmp_path_factory: pytest.TempPathFactory
) -> TrainingResult:
    """The run that nobody disturbs, which is made once."""
    if not once:
        once.append(make_trainer(make_spec(optimizer=OPTIMIZER), directory=tmp_path_factory.mktemp("whole")).fit())
    return once[0]


def assert_same(result: TrainingResult, whole: TrainingResult) -> None:
    assert curve(result.history) == curve(whole.history)
    expected = load_file(whole.weights)
    for name, tensor in load_file(result.weights).items():
        assert torch.equal(tensor, expected[name]), name


def first_steps(make_trainer: MakeTrainer, spec: TrainingSpec) -> tuple[list[int], TrainingResult]:
    """Go on to the end; which steps were done."""
    torch.manual_seed(12345)  # what the process did in between is of no account
    done: list[int] = []
    return done, make_trainer(spec, on_step=lambda step, _: done.append(step)).fit()


@pytest.mark.parametrize(
    ("last_step", "saves"),
    [
        pytest.param(2, "every step", id="first epoch"),
        pytest.param(STEPS + 2, "when it has to end", id="stage one"),
        pytest.param(STEPS + 2, "every epoch", id="stage one, from its epoch"),
        pytest.param(2 * STEPS, "every step", id="just before the switch"),
        pytest.param(2 * STEPS, "when it has to end", id="at the switch"),
        pytest.param(2 * STEPS + 1, "every step", id="just after the switch"),
        pytest.param(3 * STEPS + 2, "when it has to end", id="stage two"),
        pytest.param(3 * STEPS + 2, "every epoch", id="stage two, from its epoch"),
        pytest.param(4 * STEPS, "when it has to end", id="at the end"),
    ],
)
def test_a_restart_changes_nothing(
    make_spec: MakeSpec, make_trainer: MakeTrainer, whole: TrainingResult, last_step: int, saves: str
) -> None:
    spec = make_spec(**ALWAYS) if saves == "every step" else make_spec(optimizer=OPTIMIZER)

    def on_step(done: int, total: int) -> None:
        if done == last_step:
            if saves == "when it has to end":
                trainer.save()
            raise KeyboardInterrupt

    trainer = make_trainer(spec, on_step=on_step)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    done, result = first_steps(make_trainer, spec)
    first = {
        "every step": last_step,
        "when it has to end": last_step + 1,
        "every epoch": (last_step - 1) // STEPS * STEPS + 1,
    }[saves]
    assert done == list(range(first, 4 * STEPS + 1))
    assert_same(result, whole)


def test_interrupted_again_and_again_it_ends_the_same(
    make_spec: MakeSpec, make_trainer: MakeTrainer, whole: TrainingResult
) -> None:
    for last_step in range(1, 4 * STEPS, 3):
        with pytest.raises(KeyboardInterrupt):
            make_trainer(make_spec(**ALWAYS), on_step=stop_at(last_step)).fit()
    assert_same(first_steps(make_trainer, make_spec(**ALWAYS))[1], whole)


def test_a_checkpoint_says_where_in_its_epoch_it_is(
    make_spec: MakeSpec, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    trainer = make_trainer(make_spec(**ALWAYS), on_step=stop_at(STEPS + 3))
    batches = [len(batch) for batch in trainer._batches()]
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert (state["epoch"], state["sample_offset"]) == (1, sum(batches[STEPS : STEPS + 2]))
    assert [len(row) for row in state["begun"]["seen"]] == [4, 4]


KILLED = """
import os, signal, sys
from pathlib import Path
import dearkd.vision, timm, torch
from tests.support.bars import CLASSES, TEACHER
from dearkd.specs import TrainingSpec
from dearkd.vision.shards import ShardDataset
from dearkd_trainer import DearKDTrainer, FrozenTeacher
from dearkd_trainer.train.learner import Learner

shard, spec, directory, where, number = sys.argv[1:]
number = int(number)

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if where == "switch":
    leave = Learner.leave_stage_one
    Learner.leave_stage_one = lambda self: die(leave(self))
if where == "save":
    save, made = torch.save, []
    def half_a_checkpoint(state, part):
        save(state, part)
        made.append(part)
        if len(made) == number:
            os.truncate(part, os.path.getsize(part) // 2)
            die()
    torch.save = half_a_checkpoint
torch.manual_seed(0)
teacher = timm.create_model("resnet10t", num_classes=CLASSES, in_chans=1)
torch.set_num_threads(int(os.environ["THREADS"]))
DearKDTrainer(
    TrainingSpec.model_validate_json(spec),
    ShardDataset([Path(shard)], num_classes=CLASSES, in_chans=1),
    directory=Path(directory),
    teacher=FrozenTeacher(teacher, TEACHER),
    on_step=lambda done, _: die() if where == "step" and done == number else None,
).fit()
"""


@pytest.mark.services
@pytest.mark.parametrize(
    ("where", "number", "workers", "goes_on_with"),
    [
        pytest.param("step", STEPS + 3, 0, STEPS + 3, id="stage one, mid-epoch"),
        pytest.param("switch", 0, 0, 2 * STEPS, id="at the switch"),
        pytest.param("step", 3 * STEPS + 2, 2, 3 * STEPS + 2, id="stage two, mid-epoch, with loader workers"),
        pytest.param("save", STEPS + 2, 0, STEPS + 2, id="inside a save"),
    ],
)
def test_sigkill_changes_nothing(
    make_spec: MakeSpec,
    make_trainer: MakeTrainer,
    whole: TrainingResult,
    bar_shard: Path,
    tmp_path: Path,
    where: str,
    number: int,
    workers: int,
    goes_on_with: int,
) -> None:
    spec = make_spec(**ALWAYS, workers=workers)
    arguments = [str(bar_shard), spec.model_dump_json(), str(tmp_path / "run"), where, str(number)]
    ended = run_program(KILLED, *arguments, env={"THREADS": str(torch.get_num_threads())})
    assert ended.returncode == -signal.SIGKILL
    folder = tmp_path / "run" / "checkpoints"
    assert (folder / "last.pt.part").exists() == (where == "save")
    done, result = first_steps(make_trainer, spec)
    assert done[0] == goes_on_with
    assert_same(result, whole)
    assert {path.name for path in folder.iterdir()} == {"last.pt", "best.safetensors"}


def no_links(source: Path, target: Path) -> None:
    raise OSError(errno.EPERM, "this file system has none")


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("keep", [1, 3])
def test_so_many_checkpoints_are_kept_as_asked(
    make_spec: MakeSpec,
    make_trainer: MakeTrainer,
    tmp_path: Path,
    keep: int,
    links: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    make_trainer(make_spec(keep_checkpoints=4)).fit()
    # A run may go on with another number.
    folder = tmp_path / "run" / "checkpoints"
    (folder / "last.pt").unlink()
    (folder / "last-1.pt").rename(folder / "last.pt")
    spec = make_spec(keep_checkpoints=keep)
    make_trainer(spec).fit()
    names = ["last.pt", "last-1.pt", "last-2.pt"][:keep]
    assert {path.name for path in folder.iterdir()} == {*names, "best.safetensors"}
    epochs = [torch.load(folder / name, weights_only=True)["epoch"] for name in names]
    assert epochs == [4, 3, 2][:keep]


def test_an_unreadable_checkpoint_is_named_and_so_is_the_one_before(
    make_spec: MakeSpec, make_trainer: MakeTrainer, tmp_path: Path, whole: TrainingResult
) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "last.pt").write_bytes(b"half a checkpoint")
    with pytest.raises(CorruptData, match=r"last.pt is no readable checkpoint.*remove it to start from the beginning"):
        make_trainer(make_spec())
    (folder / "last.pt").unlink()
    spec = make_spec(optimizer=OPTIMIZER, keep_checkpoints=2)
    with pytest.raises(KeyboardInterrupt):
        make_trainer(spec, on_step=stop_at(2 * STEPS + 1)).fit()
    (folder / "last.pt").write_bytes(b"half a checkpoint")
    with pytest.raises(CorruptData, match=r"put last-1.pt in its place"):
        make_trainer(spec)
    (folder / "last-1.pt").replace(folder / "last.pt")
    assert_same(first_steps(make_trainer, spec)[1], whole)


@pytest.mark.parametrize(
    ("content", "what"),
    [({"head.weight": torch.zeros(2)}, "a dict of head.weight"), (torch.zeros(3), "Tensor"), ([1, 2], "list")],
)
def test_a_file_of_another_kind_is_no_checkpoint(
    make_spec: MakeSpec, make_trainer: MakeTrainer, tmp_path: Path, content: Any, what: str
) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(content, folder / "last.pt")
    with pytest.raises(CorruptData, match=rf"last.pt is no checkpoint of a run, but {what}: remove it"):
        make_trainer(make_spec())


def relabelled(path: Path, key: str = "{:04d}", turn: int = 0) -> ShardDataset:
    samples = [(encode(image, "png"), (label + turn) % CLASSES) for image, label in bars(60)]
    write_shard(path, (Sample(key.format(n), data, "png", label, {}) for n, (data, label) in enumerate(samples)))
    return ShardDataset([path], num_classes=CLASSES, in_chans=1)


def test_a_run_goes_on_with_the_data_that_it_began_with_alone(
    make_spec: MakeSpec, make_trainer: MakeTrainer, dataset: ShardDataset, tmp_path: Path
) -> None:
    plain = make_spec(stage_one={"distillation": "none", "weights": {"hidden": 0.0}})
    with pytest.raises(KeyboardInterrupt):
        make_trainer(plain, on_step=stop_at(STEPS + 1)).fit()
    with pytest.raises(InvalidInput, match=r"last.pt was made from other data \(mean was \[0.4\], is \[0.5\]\): use"):
        make_trainer(plain, task=TASK.model_copy(update={"mean": [0.5]}))
    for other in (
        relabelled(tmp_path / "labels.tar", turn=1),
        relabelled(tmp_path / "keys.tar", key="{:05d}"),
        ShardDataset([tmp_path / "labels.tar", tmp_path / "keys.tar"], num_classes=CLASSES, in_chans=1),
    ):
        with pytest.raises(InvalidInput, match=r"from other data \(samples was '\w{16}', is '\w{16}'\)"):
            make_trainer(plain, dataset=other)
    # The same samples from elsewhere.
    assert make_trainer(plain, dataset=relabelled(tmp_path / "copy.tar")).epoch == 1


def test_another_number_of_threads_is_said_and_goes_on(
    make_spec: MakeSpec, make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        make_trainer(make_spec(), on_step=stop_at(STEPS + 1)).fit()
    torch.set_num_threads(threads + 1)
    try:
        rows = make_trainer(make_spec()).fit().history
    finally:
        torch.set_num_threads(threads)
    assert [row["threads"] for row in rows] == [threads, *[threads + 1] * 3]
    assert f"with {threads + 1} CPU threads, its checkpoint was made with {threads}" in caplog.text


def test_where_the_best_weights_are_gone_the_next_ones_are_the_best(
    make_spec: MakeSpec, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    trainer = make_trainer(make_spec(), on_step=stop_at(STEPS + 1))
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    best = tmp_path / "run" / "checkpoints" / "best.safetensors"
    assert make_trainer(make_spec()).best["epoch"] == 1
    best.unlink()
    again = make_trainer(make_spec())
    assert not again.best
    again.fit()
    assert best.exists()


def _fill(tensors: Iterable[torch.Tensor], value: float) -> None:
    for tensor in tensors:
        tensor.data.fill_(value)


@pytest.mark.parametrize("damage", ["loss", "weight", "aligner", "average", "moment"])
def test_what_is_not_finite_gets_into_no_checkpoint(
    make_spec: MakeSpec, make_trainer: MakeTrainer, tmp_path: Path, damage: str
) -> None:
    spec = make_spec(optimizer=OPTIMIZER, stage_one={"epochs": 3})
    # After the last step of an epoch no loss shows what became of the weights.
    poisoned = STEPS + 2 if damage == "loss" else 2 * STEPS

    def poison(done: int, _: int) -> None:
        if done != poisoned:
            return
        learner = trainer.learner
        assert learner.average is not None
        _fill(
            {
                "loss": [trainer.student.head.bias],
                "weight": [trainer.student.head.bias],
                "aligner": list(learner.aligners.parameters())[-1:],
                "average": [learner.average.module.get_parameter("head.bias")],
                "moment": [learner.optimizer.state[trainer.student.head.bias]["exp_avg_sq"]],
            }[damage],
            torch.nan,
        )

    trainer = make_trainer(spec, on_step=poison)
    with pytest.raises(Diverged, match=f"step {poisoned}"):
        trainer.fit()
    assert [row["epoch"] for row in trainer.history] == [1]
    # Nor does it take the place of the best weights.
    best = load_file(tmp_path / "run" / "checkpoints" / "best.safetensors")
    assert all(tensor.isfinite().all() for tensor in best.values())
    again = make_trainer(spec)
    assert again.epoch == 1
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    tensors = [value for value in tree_leaves(state) if isinstance(value, torch.Tensor)]
    assert len(tensors) > 50
    assert all(tensor.isfinite().all() for tensor in tensors)
    assert again.learner.is_finite()
