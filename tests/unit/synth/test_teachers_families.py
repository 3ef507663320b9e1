"""Teachers of every family and shape: grey and colour, two classes and a thousand, dilated, synchronised."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from dearkd.errors import InvalidInput
from dearkd.specs import SynthesisSpec
from dearkd.vision.images import to_input
from dearkd.vision.teachers import features_and_logits
from dearkd_synth.inversion import DeepInversion
from dearkd_synth.objective.statistics import StatisticsMatching
from dearkd_synth.synthesised import SynthesisedShard
from tests.support.families import FAMILIES
from tests.support.hook_reference import hook_reference

pytestmark = pytest.mark.slow


def invert(model: nn.Module, teacher: Any, **posted: Any) -> tuple[SynthesisedShard, list[float]]:
    """A shard of one batch after a few steps that show the same view, and the total at each step."""
    small = {
        "teacher": "t",
        "classes": [0, teacher.num_classes - 1],
        "images_per_class": 2,
        "phases": [{"resolution": 16, "iterations": 6}],
        "unlabelled_iterations": 0,  # steps without labels lack terms: totals could not be compared
        "jitter": 0,
        "flip": 0.0,
    }
    totals: list[float] = []
    spec = SynthesisSpec.resolve(small | posted, teacher)
    with DeepInversion(model, teacher, spec, on_step=lambda step: totals.append(step.losses["total"])) as inversion:
        return inversion.shard(0), totals


@pytest.mark.parametrize(
    ("architecture", "in_chans", "num_classes"),
    [(family, *shape) for family, shape in zip(FAMILIES, [(1, 2), (3, 1000), (3, 2)] * 3, strict=True)],
)
def test_grey_and_colour_few_classes_and_many(
    small_teacher, architecture: str, in_chans: int, num_classes: int
) -> None:
    model, teacher = small_teacher(
        architecture, in_chans=in_chans, num_classes=num_classes, model_args=FAMILIES[architecture]
    )
    made, totals = invert(model, teacher, statistics="l2", generator=None)
    assert made.images.shape == (4, in_chans, 32, 32)
    assert sorted(made.labels.tolist()) == [0, 0, num_classes - 1, num_classes - 1]
    assert made.logits.shape == (4, num_classes)
    assert made.batches[0].losses["total"] < totals[0]
    # What is recorded is true of an untouched copy of the teacher, by hooks.
    layers = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    with torch.no_grad():
        logits, distance = hook_reference(model, to_input(made.images, teacher), [1.0] * layers)
    torch.testing.assert_close(made.logits, logits, rtol=1e-4, atol=1e-4)
    assert made.batches[0].batch_norm_distance == pytest.approx(distance.item(), rel=1e-3)
    for label, alone in made.batches[0].class_batch_norm_distance.items():
        images = to_input(made.images[made.labels == label], teacher)
        with torch.no_grad():
            assert alone == pytest.approx(hook_reference(model, images, [1.0] * layers)[1].item(), rel=1e-3)


@pytest.mark.parametrize("architecture", ["resnet10t", "mobilenetv3_small_050", "densenet121", "vgg11_bn"])
def test_images_become_those_that_were_asked_for(small_teacher, architecture: str) -> None:
    """By the judgement of a teacher whose untrained answers were stretched until they tell noise from noise."""
    model, teacher = small_teacher(architecture, num_classes=4, model_args=FAMILIES[architecture])
    model = copy.deepcopy(model)
    noise = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    classifier = model.get_classifier()
    with torch.no_grad():
        deviation, mean = torch.std_mean(model(to_input(noise, teacher)), dim=0)
        classifier.weight.div_(deviation[:, None])
        classifier.bias.sub_(mean).div_(deviation)
    weights = {"cross_entropy": 20.0, "boundary": 0.0}
    phases = [{"resolution": 32, "iterations": 40}]
    made, _ = invert(model, teacher, classes=[0, 1, 2, 3], weights=weights, phases=phases)
    with torch.no_grad():
        seen = model(to_input(made.images, teacher)).argmax(dim=1)
    assert seen.tolist() == made.labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("architecture", "model_args", "side"),
    [
        ("resnet10t", {}, 2),
        ("resnet10t", {"output_stride": 16}, 4),
        ("resnet10t", {"output_stride": 8}, 8),
        ("regnety_002", {"output_stride": 16}, 4),
        ("efficientnet_b0", {"output_stride": 16}, 4),
    ],
)
def test_dilation_is_respected(small_teacher, architecture: str, model_args: dict[str, Any], side: int) -> None:
    """The last map of 64 px input has the side that the stride asks for, and its statistics are the ones matched."""
    model, teacher = small_teacher(architecture, image_size=64, model_args=model_args)
    model = copy.deepcopy(model).requires_grad_(False)
    assert model.forward_features(torch.zeros(1, 3, 64, 64)).shape[-1] == side
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    layers = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    logits, expected = hook_reference(model, x, [1.0] * layers)
    made, totals = invert(model, teacher, phases=[{"resolution": 32, "iterations": 4}])
    assert made.batches[0].losses["total"] < totals[0]
    matching = StatisticsMatching(model)
    matching.start()
    torch.testing.assert_close(model(x), logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(matching.loss(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [0.0, 3.0])
def test_the_classifiers_bias_counts(small_teacher, bias: float) -> None:
    """The logits are W·f + b with the teacher's own bias, so a class that it favours needs no help."""
    model, teacher = small_teacher(num_classes=3)
    model = copy.deepcopy(model)
    classifier = model.get_classifier()
    with torch.no_grad():
        classifier.bias.copy_(torch.tensor([bias, 0.0, -bias]))
    made, _ = invert(model, teacher)
    expected = made.features @ classifier.weight.T + torch.tensor([bias, 0.0, -bias])
    torch.testing.assert_close(made.logits, expected.detach(), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        features, logits = features_and_logits(model, to_input(made.images, teacher))
    torch.testing.assert_close(made.features, features, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made.logits, logits, rtol=1e-4, atol=1e-4)


def test_a_network_of_one_size_is_inverted_with_the_preset_that_halves_it(small_teacher) -> None:
    model, teacher = small_teacher("levit_128s", image_size=64, model_args={"img_size": 64})
    posted = {"teacher": "t", "preset": "published-imagenet", "images_per_class": 1, "classes": [0, 1]}
    with pytest.raises(InvalidInput, match="/phases/0/input_size"):
        DeepInversion(model, teacher, SynthesisSpec.resolve(posted, teacher))
    spec = SynthesisSpec.resolve(posted, teacher, refused_input_sizes=[32])
    spec = spec.model_copy(update={"phases": [p.model_copy(update={"iterations": 1}) for p in spec.phases]})
    with DeepInversion(model, teacher, spec) as inversion:
        assert inversion.shard(0).images.shape == (2, 3, 64, 64)


def test_synchronised_batch_norm_gives_the_same_images(small_teacher) -> None:
    """In eval mode it computes what BatchNorm2d does, on any device; a CPU cannot run it otherwise."""
    model, teacher = small_teacher("resnet10t")
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
    made, _ = invert(model, teacher)
    also, _ = invert(converted, teacher)
    assert torch.equal(made.images, also.images)


@pytest.mark.parametrize("image_size", [32, 96, 224])
def test_sizes(small_teacher, image_size: int) -> None:
    model, teacher = small_teacher(image_size=image_size)
    made, totals = invert(model, teacher, phases=[{"resolution": image_size // 2, "iterations": 2}])
    assert made.images.shape[-2:] == (image_size, image_size)
    assert len(totals) == 2
