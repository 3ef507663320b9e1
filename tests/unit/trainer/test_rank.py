"""The file by which a process of a run's group gets its arguments."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from dearkd.specs import Task
from dearkd_trainer.service.inputs import RunInputs
from dearkd_trainer.service.process_group import RankConfig
from tests.support.bars import TASK, TEACHER, MakeSpec


def test_names_that_were_stored_before_there_was_a_rule_reach_each_process(make_spec: MakeSpec, tmp_path: Path) -> None:
    names = ["low\x07", "middle", "high"]
    given = RankConfig(
        inputs=RunInputs(
            spec=make_spec(),
            directory=tmp_path,
            shards=[tmp_path / "train.tar"],
            eval_shards=None,
            task=Task.stored(TASK.model_dump(mode="json") | {"class_names": names}),
            teacher=TEACHER,
            teacher_weights=tmp_path / "teacher.safetensors",
        ),
        device="cpu",
        threads=1,
        socket=tmp_path / "socket",
    )
    file = tmp_path / "rank.json"
    file.write_text(given.model_dump_json(), encoding="utf-8")
    assert RankConfig.read(file) == given
    with pytest.raises(ValidationError, match="class_names"):
        RankConfig.model_validate_json(file.read_text(encoding="utf-8"))
