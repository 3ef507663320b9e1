"""A second family of students, registered here alone: it is distilled into, evaluated, exported and gone on from."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models.resnet import BasicBlock, ResNet

from dearkd.errors import InvalidInput
from dearkd.specs import StudentSpec, TrainingSpec
from dearkd.specs.recipes import STUDENTS, StudentSize
from dearkd.storage.file_cache import FileCache
from dearkd.vision.shards import ShardDataset
from dearkd_trainer import Student, register_student
from dearkd_trainer.commands.export import ExportOptions, write_export
from dearkd_trainer.commands.sources import open_model
from dearkd_trainer.model.export import load_model
from dearkd_trainer.model.student import FAMILIES, HiddenShape
from tests.support.bars import SIDE, MakeSpec, MakeTrainer, stop_at

pytestmark = pytest.mark.slow

NAME = "toy_conv"
default_cfgs = generate_default_cfgs({NAME: {"first_conv": "conv1", "classifier": "fc"}})  # timm finds it by its name


class ConvStudent(ResNet, Student):
    """A residual CNN of four stages; it knows neither tokens nor attention."""

    kind = "convolutional network"

    @classmethod
    def model_args(cls, spec: StudentSpec, num_classes: int, in_chans: int) -> dict[str, Any]:
        width = spec.embed_dim
        return {"num_classes": num_classes, "in_chans": in_chans, "channels": [width, width, width, 2 * width]}

    @property
    def hidden_shapes(self) -> list[HiddenShape]:
        side = SIDE
        return [
            HiddenShape(info["num_chs"], -(-side // info["reduction"]), -(-side // info["reduction"]))
            for info in self.feature_info
        ]


@pytest.fixture(scope="module")
def family() -> Iterator[None]:
    """An architecture of the family, taken back afterwards."""
    size = StudentSize(embed_dim=8, depth=5, num_heads=1, mhca_blocks=0, patch_size=4, image_size=SIDE)

    @register_student(ConvStudent, size)
    def toy_conv(pretrained: bool = False, **kwargs: Any) -> ConvStudent:
        model: ConvStudent = build_model_with_cfg(
            ConvStudent,
            NAME,
            pretrained,
            block=BasicBlock,
            layers=(1, 1, 1, 1),
            **kwargs,
        )
        return model

    yield
    del FAMILIES[NAME], STUDENTS[NAME]


@pytest.fixture
def spec(family: None, make_spec: MakeSpec) -> TrainingSpec:
    student = {"architecture": NAME, "embed_dim": 8, "depth": 5, "num_heads": 1, "mhca_blocks": 0}
    return make_spec(student=student | {"drop_path_rate": 0.0}, optimizer={"layer_decay": 0.8})


def test_it_is_distilled_into_evaluated_and_exported(
    spec: TrainingSpec, make_trainer: MakeTrainer, dataset: ShardDataset, tmp_path: Path
) -> None:
    trainer = make_trainer(spec, eval_dataset=dataset)
    assert isinstance(trainer.student, ConvStudent)
    assert [pair.block for pair in trainer.learner.pairs] == [0]  # a third of five
    result = trainer.fit()
    assert {"classification", "distillation", "hidden", "eval_top1"} <= set(result.history[0])
    assert "attention_distance_1" not in result.history[-1]
    written = {path.name for path in (tmp_path / "run").iterdir() if path.is_file()}
    files = {"model.safetensors", "config.json", "README.md", "report.html", "metrics.jsonl", "evaluation.json"}
    assert written == files
    report = (tmp_path / "run" / "report.html").read_text()
    assert "Predictions" in report
    assert "Where the student looked" not in report
    assert "Reach of attention" not in report
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["architecture"] == NAME
    assert config["pretrained_cfg"]["classifier"] == "fc"
    model, images = load_model(config, result.weights), torch.randn(2, 1, SIDE, SIDE)
    torch.testing.assert_close(model(images), trainer.evaluated.eval()(images), rtol=0, atol=0)
    assert "A DearKD convolutional network (`toy_conv`" in (tmp_path / "run" / "README.md").read_text()
    # Its code is its author's: the folder loads wherever that is imported, and says so.
    with FileCache(tmp_path / "cache", 2**20) as cache:
        exported = open_model(str(tmp_path / "run"), lambda: pytest.fail("a folder needs no API"), cache)
    (out := tmp_path / "hub").mkdir()
    write_export(exported, out, "hf", ExportOptions())
    assert {path.name for path in out.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    again = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    torch.testing.assert_close(again(images), model(images), rtol=0, atol=0)
    about = ModelCard.load(out / "README.md").data
    assert about.library_name == "timm"
    assert about.eval_results[0].metric_value == pytest.approx(result.history[-1]["eval_top1"])


def test_it_goes_on_from_a_checkpoint_and_begins_from_a_trained_one(
    spec: TrainingSpec, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    whole = make_trainer(spec, directory=tmp_path / "whole")
    expected = whole.fit()
    with pytest.raises(KeyboardInterrupt):
        make_trainer(spec, on_step=stop_at(5)).fit()
    resumed = make_trainer(spec)
    resumed.fit()
    for name, tensor in whole.student.state_dict().items():
        assert torch.equal(resumed.student.state_dict()[name], tensor), name
    tuned = make_trainer(spec, initial=load_model(expected.config, expected.weights), directory=tmp_path / "tuned")
    assert torch.equal(tuned.student.conv1.weight, whole.evaluated.conv1.weight)


def test_an_architecture_that_nobody_registered_is_refused(spec: TrainingSpec, make_trainer: MakeTrainer) -> None:
    unknown = spec.model_copy(update={"student": spec.student.model_copy(update={"architecture": "resnet18"})})
    with pytest.raises(InvalidInput, match="unknown student 'resnet18'; there are dearkd_tiny") as caught:
        make_trainer(unknown)
    assert [error.pointer for error in caught.value.errors] == ["/student/architecture"]
