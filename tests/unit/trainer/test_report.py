"""What the library leaves beside a model, without any service."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from dearkd.client import Client
from dearkd.storage.file_cache import FileCache
from dearkd.vision.shards import ShardDataset
from dearkd_trainer.commands.sources import open_model, recorded_rows
from dearkd_trainer.evaluate.attention import recorded_distances
from tests.support.bars import TASK, MakeSpec, MakeTrainer, stop_at

pytestmark = pytest.mark.slow


def no_client() -> Client:
    raise AssertionError("a folder needs no API")


def test_a_library_run_leaves_rows_evaluation_and_card_beside_its_model(
    make_spec: MakeSpec, make_trainer: MakeTrainer, dataset: ShardDataset, tmp_path: Path
) -> None:
    names = ["low", "middle", "high"]
    result = make_trainer(
        make_spec(name="bars"), eval_dataset=dataset, task=TASK.model_copy(update={"class_names": names})
    ).fit()
    folder = result.weights.parent
    assert [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] == result.history
    assert result.evaluation is not None
    found = json.loads((folder / "evaluation.json").read_text())
    assert found["top1"] == result.evaluation.top1
    assert found["confusion"] == result.evaluation.confusion
    assert [(row["name"], row["samples"]) for row in found["per_class"]] == [(name, 20) for name in names]
    card = ModelCard.load(folder / "README.md")
    assert card.data.eval_results[0].metric_value == result.evaluation.top1
    assert "- Trained on: 54 images of `bars`" in card.text
    assert "- Teacher: `tiny`" in card.text
    # `dearkd evaluate FOLDER --out` finds what was before and after stage two.
    with FileCache(tmp_path / "cache", 2**20) as cache:
        model = open_model(str(folder), no_client, cache)
    series = recorded_distances(recorded_rows(model, no_client))
    assert list(series) == ["after epoch 2 (stage 1)", "after epoch 4 (stage 2)"]
    assert series["after epoch 4 (stage 2)"] == pytest.approx(found["attention_distance"]["layers"])


def test_without_an_evaluation_dataset_there_is_no_evaluation(
    make_spec: MakeSpec, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    plain = {"distillation": "none", "weights": {"hidden": 0.0}}
    make_trainer(make_spec(stage_one=plain), teacher=None).fit()
    names = {path.name for path in (tmp_path / "run").iterdir() if path.is_file()}
    pictures = {"attention_distance.png", "report.html"}
    assert names == {"model.safetensors", "config.json", "README.md", "metrics.jsonl"} | pictures
    assert "not evaluated on images of its own" in (tmp_path / "run" / "README.md").read_text()


def test_rows_are_written_epoch_by_epoch_and_again_after_a_restart(
    make_spec: MakeSpec, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    def epochs() -> list[int]:
        return [json.loads(line)["epoch"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]

    spec = make_spec(checkpoint_every=2)
    with pytest.raises(KeyboardInterrupt):
        make_trainer(spec, on_step=stop_at(13)).fit()
    assert epochs() == [1, 2, 3]
    written: list[list[int]] = []
    make_trainer(spec, on_epoch=lambda _: written.append(epochs())).fit()  # from the checkpoint of epoch 2
    assert written == [[1, 2, 3], [1, 2, 3, 4]]
