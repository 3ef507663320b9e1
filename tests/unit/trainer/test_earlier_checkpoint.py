"""A checkpoint that the version after the rooms made is gone on with; one of a newer version is refused by name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from dearkd.errors import InvalidInput, NewerSchema
from dearkd.specs import TrainingSpec
from dearkd.vision.shards import ShardDataset
from dearkd_trainer import DearKDTrainer, FrozenTeacher
from dearkd_trainer.record.checkpoint import OLDEST, VERSION, read_state
from tests.support.bars import CLASSES, SIDE, TASK, TEACHER
from tests.support.rooms import ROOMS

FIGURES = ("loss", "classification", "learning_rate", "holdout_top1")


def go_on(directory: Path, teacher: nn.Module) -> DearKDTrainer:
    """The trainer of the fixture's run, behind its checkpoint."""
    (directory / "checkpoints").mkdir(parents=True)
    shutil.copy(ROOMS / "last.pt", directory / "checkpoints" / "last.pt")
    return DearKDTrainer(
        TrainingSpec.stored(json.loads((ROOMS / "run.json").read_text())),
        ShardDataset([ROOMS / "bars.tar"], num_classes=CLASSES, in_chans=1),
        directory=directory,
        task=TASK.at(SIDE),
        teacher=FrozenTeacher(teacher, TEACHER),
    )


def test_a_run_goes_on_as_the_version_would_have_that_began_it(tmp_path: Path, teacher: nn.Module) -> None:
    """Its rows are those that the older code went on to itself, of stage one too, whose losses it took otherwise."""
    trainer = go_on(tmp_path / "run", teacher)
    assert trainer.epoch == 1
    trainer.fit()
    expected = json.loads((ROOMS / "rows.json").read_text())
    assert len(expected) == 3
    assert [row["stage"] for row in expected] == [1, 1, 2]
    for found, wanted in zip(trainer.history, expected, strict=True):
        for name in FIGURES:
            assert found[name] == pytest.approx(wanted[name], rel=1e-4), (found, wanted)


@pytest.mark.parametrize("schema", [VERSION + 1, OLDEST - 1])
def test_others_are_refused_with_the_version_they_need(tmp_path: Path, schema: int) -> None:
    path = tmp_path / "last.pt"
    torch.save({"version": schema}, path)
    kind = NewerSchema if schema > VERSION else InvalidInput
    with pytest.raises(kind, match=rf"last\.pt is of schema {schema}.*{VERSION}"):
        read_state(path, remedy="r", other="use an empty directory")
