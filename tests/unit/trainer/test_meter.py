"""What an epoch's row says of time: that of its steps alone."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dearkd.vision.shards import ShardDataset
from dearkd_trainer.record import meter
from dearkd_trainer.train import trainer as training
from tests.support.bars import STEPS, MakeSpec, MakeTrainer, stop_at

pytestmark = pytest.mark.slow


class Clock:
    """Stands still but when it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(meter, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def test_evaluations_and_checkpoints_do_not_count_as_time_of_steps(
    make_spec: MakeSpec,
    make_trainer: MakeTrainer,
    dataset: ShardDataset,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    teacher: Any,
) -> None:
    evaluate = training.evaluate  # type: ignore[attr-defined]

    def slow_evaluation(*args: Any, **kwargs: Any) -> Any:
        clock.pass_by(1e6)
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(training, "evaluate", slow_evaluation)
    # A batch takes 3 s to come, the teacher 1 s, the rest of a step nothing, or 4 s where there is no teacher any more.
    dataset.preload()
    decode = dataset.__class__.__getitem__
    monkeypatch.setattr(
        dataset.__class__, "__getitem__", lambda self, index: clock.pass_by(3 * STEPS / 54) or decode(self, index)
    )
    teacher.get_submodule("conv1").register_forward_hook(lambda *_: clock.pass_by(1.0))
    trainer = make_trainer(
        make_spec(checkpoint_seconds=1e-9),  # after each step
        on_epoch=lambda _: clock.pass_by(1e6),
        on_checkpoint=lambda _: clock.pass_by(1e6),
    )
    step = trainer.learner.step
    monkeypatch.setattr(
        trainer.learner,
        "step",
        lambda *args, **kwargs: (clock.pass_by(0.0 if trainer.learner.teacher else 4.0), step(*args, **kwargs))[1],
    )
    for row in trainer.fit().history:
        each = 3.0 + (1.0 if row["stage"] == 1 else 4.0)
        assert row["images_per_second"] == pytest.approx(54 / (STEPS * each))
        assert row["data_wait"] == pytest.approx(3.0 / each)
        if row["stage"] == 1:
            assert row["teacher_share"] == pytest.approx(1.0 / each)


def test_on_cuda_the_peak_of_memory_is_each_epochs_own(
    make_spec: MakeSpec, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", told.append)
    cuda = torch.device("cuda", 1)
    meter.reset_peak_memory(torch.device("cpu"))
    assert not told
    meter.reset_peak_memory(cuda)
    assert told == [cuda]
    resets: list[int] = []
    trainer = make_trainer(make_spec(), on_step=lambda done, _: steps.append(done))
    steps: list[int] = []
    monkeypatch.setattr(training, "reset_peak_memory", lambda _: resets.append(len(steps)))
    trainer.fit()
    assert resets == [0, STEPS, 2 * STEPS, 3 * STEPS]


def test_an_epoch_whose_steps_were_all_done_before_a_restart_has_no_pace(
    make_spec: MakeSpec, make_trainer: MakeTrainer
) -> None:
    def on_step(done: int, total: int) -> None:
        if done == STEPS:
            trainer.save()
            stop_at(STEPS)(done, total)

    trainer = make_trainer(make_spec(), on_step=on_step)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    first, second, *_ = make_trainer(make_spec()).fit().history
    assert not {"images_per_second", "data_wait", "teacher_share"} & set(first)
    assert second["images_per_second"] > 0
