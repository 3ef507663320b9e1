"""A CNN of no library as a teacher: found out by watching it, and then used as timm's are."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dearkd.errors import InvalidInput
from dearkd.specs import DatasetFacts, SynthesisSpec, TeacherSpec, TrainingSpec
from dearkd.vision import architectures
from dearkd.vision.module_teachers import ModuleTeacher, as_teacher
from dearkd.vision.shard_writer import write_samples
from dearkd.vision.shards import ShardDataset
from dearkd.vision.teachers import build_teacher, describe_teacher, features_and_logits, load_teacher, save_teacher
from dearkd_synth import DeepInversion
from dearkd_trainer import DearKDTrainer, FrozenTeacher
from tests.support.teacher_files import trained


class Own(nn.Module):
    """Residual, with one ReLU for all places, an operation in place, a dropout, and a second head that nobody asks."""

    def __init__(self, num_classes: int = 3, in_chans: int = 3, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_chans, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width))
        self.mix = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))
        self.down = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * width))
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.unused = nn.Linear(2 * width, num_classes)
        self.last = nn.Linear(2 * width, num_classes)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps of both resolutions, and what the classifier gets."""
        x = self.act(self.stem(x))
        x = x + self.mix(x)
        fine = self.mix(x)
        deep = self.down(fine)
        pooled = self.act(deep.clone()).mean((2, 3))
        return fine, deep, self.drop(pooled)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.features(x)[-1])
        return logits


def own(**arguments: Any) -> Own:
    torch.manual_seed(0)
    network = trained(Own(**arguments))
    assert isinstance(network, Own)
    return network


def spec_of(image_size: int = 16, **fields: Any) -> TeacherSpec:
    return TeacherSpec.check(
        {
            "name": "own",
            "architecture": "resnet10t",
            "num_classes": 3,
            "in_chans": 3,
            "image_size": image_size,
            "mean": [0.5] * 3,
            "std": [0.25] * 3,
        }
        | fields
    )


def test_features_logits_and_maps_are_those_of_the_network_itself() -> None:
    network = own()
    teacher = ModuleTeacher(network, in_chans=3, image_size=16)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    _, deep, pooled = network.features(images)
    features, logits = features_and_logits(teacher, images)
    torch.testing.assert_close(features, pooled)
    torch.testing.assert_close(logits, network(images))
    assert teacher.get_classifier() is network.last
    last, maps = teacher.forward_intermediates(images)
    torch.testing.assert_close(teacher.forward_head(last), network(images))
    # `mix` and `act` are called again elsewhere: of their resolution the stem is the last that is called once.
    torch.testing.assert_close(maps[0], F.relu(network.stem(images)))  # as the ReLU in place has left it
    torch.testing.assert_close(maps[1], deep)
    assert len(maps) == 2
    (only,) = teacher.forward_intermediates(images, [1], intermediates_only=True)
    torch.testing.assert_close(only, deep)


@pytest.mark.parametrize("name", ["resnet18", "mnasnet0_5"])
def test_maps_of_torchvisions_networks_are_those_that_its_own_extractor_gives(name: str) -> None:
    from torchvision import models
    from torchvision.models.feature_extraction import create_feature_extractor

    network = trained(models.get_model(name, weights=None))
    teacher = ModuleTeacher(network, in_chans=3, image_size=64)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    last = {"resnet18": "layer4", "mnasnet0_5": "layers.16"}[name]
    theirs = create_feature_extractor(network, {last: "last", "flatten" if name == "resnet18" else "mean": "pooled"})
    found = theirs(images)
    maps = teacher.forward_intermediates(images, intermediates_only=True)
    torch.testing.assert_close(maps[-1], found["last"])
    sides = [one.shape[-1] for one in maps]
    assert sides == [32, 16, 8, 4, 2]
    torch.testing.assert_close(features_and_logits(teacher, images)[0], found["pooled"])


def test_a_copy_has_modules_of_its_own_and_weights_keep_their_names(tmp_path: Path) -> None:
    network = own()
    teacher = ModuleTeacher(network, in_chans=3, image_size=16)
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        network.last.weight.zero_()
    assert other.get_classifier() is not network.last
    images = torch.ones(1, 3, 16, 16)
    assert not torch.equal(other(images), teacher(images))
    assert teacher.state_dict().keys() == network.state_dict().keys()
    save_teacher(other, tmp_path / "w.safetensors")
    from safetensors.torch import load_file

    assert load_file(tmp_path / "w.safetensors").keys() == network.state_dict().keys()
    teacher.load_state_dict(other.state_dict())
    torch.testing.assert_close(other(images), network(images))


def test_networks_with_timms_interface_stay_as_they_are() -> None:
    network = build_teacher(spec_of())
    assert as_teacher(network, in_chans=3, image_size=16) is network


def test_images_and_a_student_come_out_of_a_network_of_ones_own(tmp_path: Path) -> None:
    task = spec_of(image_size=32)
    network = own(width=16)
    teacher = as_teacher(network, in_chans=3, image_size=32)
    posted = {"teacher": "own", "images_per_class": 4, "phases": [{"resolution": 16, "iterations": 8}]}
    synthesis = SynthesisSpec.resolve({**posted, "min_teacher_accuracy": 0.0}, task)
    with DeepInversion(teacher, task, synthesis) as inversion:
        made = inversion.shard(0)
    write_samples(tmp_path / "a.tar", made, synthesis)
    with torch.no_grad():
        pixels = made.images.float() / 255
        torch.testing.assert_close(made.logits, network((pixels - 0.5) / 0.25), rtol=1e-3, atol=1e-3)
    facts = DatasetFacts(num_samples=12, num_classes=3, image_size=32, in_chans=3, synthetic=True, mirrored=True)
    wanted = TrainingSpec.resolve(
        {"dataset": "d", "batch_size": 12, "stage_one": {"epochs": 1}, "stage_two": {"epochs": 1}}, facts, task
    )
    assert wanted.stage_one.weights.hidden > 0
    frozen = FrozenTeacher(teacher, task)
    assert [stage.channels for stage in frozen.stages()] == [16, 32]
    dataset = ShardDataset([tmp_path / "a.tar"], num_classes=3, in_chans=3)
    trainer = DearKDTrainer(wanted, dataset, directory=tmp_path / "run", teacher=frozen)
    trainer.fit()
    assert trainer.history[0]["hidden"] > 0


class Pair(Own):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), None


class Headless(Own):
    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)[-1]


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3 * 16 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(x.flatten(1))
        return logits


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (Own().train(), "training mode"),
        (Pair().eval(), "tuple"),
        (Headless().eval(), "answers with 16 logits"),
        (Flat().eval(), "is it a CNN?"),
        (Own(in_chans=1).eval(), "cannot take an image of 3×16×16"),
    ],
    ids=["training", "pair", "headless", "flat", "grey"],
)
def test_what_cannot_be_a_teacher_is_told_why(network: nn.Module, said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as refused:
        ModuleTeacher(network, in_chans=3, image_size=16)
    assert refused.value.errors[0].pointer == "/architecture"


def test_an_operators_network_is_built_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "shoe_nets-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: shoe-nets\nVersion: 1\n")
    (installed / "entry_points.txt").write_text("[dearkd.teachers]\nshoe_net = shoe_nets:build\n")
    (tmp_path / "shoe_nets.py").write_text(
        "from tests.unit.vision.test_module_teachers import Own\n"
        "def build(num_classes, in_chans, width=8):\n    return Own(num_classes, in_chans, width)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "tests.unit.vision.test_module_teachers", sys.modules[__name__])
    architectures._plugged_in.cache_clear()
    try:
        spec = spec_of(architecture="shoe_net", model_args={"width": 4})
        network = own(width=4)
        save_teacher(network, tmp_path / "w.safetensors")
        images = torch.ones(1, 3, 16, 16)
        torch.testing.assert_close(load_teacher(spec, tmp_path / "w.safetensors")(images), network(images))
        assert describe_teacher(spec, tmp_path / "w.safetensors").batch_norm_layers == 3
        with pytest.raises(InvalidInput, match="widht"):
            build_teacher(spec_of(architecture="shoe_net", model_args={"widht": 4}))
        with pytest.raises(InvalidInput, match="did you mean shoe_net"):
            build_teacher(spec_of(architecture="shoe_nett"))
    finally:
        architectures._plugged_in.cache_clear()


def test_a_name_that_torchvision_has_not_is_refused_with_what_was_meant() -> None:
    with pytest.raises(InvalidInput, match=r"shufflenet_v2_x1\b.*did you mean .*shufflenet_v2_x1_0"):
        build_teacher(spec_of(architecture="torchvision:shufflenet_v2_x1"))
    with pytest.raises(InvalidInput, match="3 channels"):
        build_teacher(
            spec_of(architecture="torchvision:shufflenet_v2_x1_0", in_chans=1, mean=[0.5], std=[0.25], image_size=32)
        )
