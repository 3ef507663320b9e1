"""The watch over the first shard: what is bad is named with its cause, and what is good passes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dearkd.errors import PoorImages
from dearkd.specs import SynthesisSpec, TeacherSpec
from dearkd.vision.teachers import load_teacher
from dearkd_synth.inversion import DeepInversion
from dearkd_synth.synthesised import SynthesisedBatch, SynthesisedShard
from dearkd_synth.watch import require_good, warnings
from dearkd_trainer.demo.digits import real_digits
from tests.support.specs import TEACHER


def shard(images: Tensor, right: int, *, variance: float = 1.0) -> SynthesisedShard:
    """A shard of these images, of which the teacher names so many right."""
    count = len(images)
    labels = torch.zeros(count, dtype=torch.int64)
    nothing = torch.zeros(count)
    batch = SynthesisedBatch(
        images=images,
        labels=labels,
        predicted=(torch.arange(count) >= right).long(),
        confidence=nothing,
        margin=nothing,
        features=nothing[:, None],
        logits=nothing[:, None],
        batch_norm_distance=0.0,
        class_batch_norm_distance={0: 0.0},
        first_layer_variance=variance,
        losses={},
    )
    return SynthesisedShard(index=0, samples=range(count), batches=[batch])


def spec(**posted: float) -> SynthesisSpec:
    return SynthesisSpec.resolve({"teacher": "t", **posted}, TEACHER)


def test_the_share_that_is_asked_for_is_enough_and_one_image_less_is_not() -> None:
    digits = real_digits()[0].images[:20]
    require_good(shard(digits, 10), spec())
    require_good(shard(digits, 0), spec(min_teacher_accuracy=0))
    require_good(shard(digits, 18), spec(min_teacher_accuracy=0.9))
    with pytest.raises(
        PoorImages, match=r"gives 45% of the first 20 .* is 0\.5; .* more iterations .* goes on"
    ) as caught:
        require_good(shard(digits, 9), spec())
    assert (caught.value.code, caught.value.retryable) == ("poor_images", False)


def test_grey_images_and_a_first_layer_that_is_off_point_at_the_normalisation() -> None:
    digits = real_digits()[0].images[:20]
    assert warnings(shard(digits, 0)) == []
    faint = (100 + digits.float() / 255 * 20).to(torch.uint8)
    assert "nearly of one grey" in warnings(shard(faint, 20))[0]
    for variance in (0.05, 30.0):
        (warning,) = warnings(shard(digits, 20, variance=variance))
        assert f"{variance:.2g} times the variance" in warning
        assert "the mean and std that it says?" in warning
        with pytest.raises(PoorImages, match="normalised with the mean and std"):
            require_good(shard(digits, 0, variance=variance), spec())


def test_the_variance_at_the_first_layer_is_that_of_a_plain_forward(small_teacher) -> None:
    model, teacher_spec = small_teacher()
    posted = {"teacher": "t", "images_per_class": 4, "phases": [{"resolution": 16, "iterations": 2}]}
    with DeepInversion(model, teacher_spec, SynthesisSpec.resolve(posted, teacher_spec)) as inversion:
        (batch,) = inversion.shard(0).batches
    seen: list[Tensor] = []
    layer = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    mean, std = (np.array(values)[:, None, None] for values in (teacher_spec.mean, teacher_spec.std))
    with torch.no_grad():
        model(torch.from_numpy((batch.images.numpy() / 255 - mean) / std).float())
    handle.remove()
    variance = seen[0].transpose(0, 1).flatten(1).var(1, correction=0) + layer.eps
    # In float32, and in another order of sums.
    expected = (variance / (layer.running_var + layer.eps)).median().item()
    assert batch.first_layer_variance == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [30.0, 1 / 30])
def test_a_teacher_that_says_another_normalisation_than_its_own_is_noticed(
    digits_teacher: tuple[TeacherSpec, Path], factor: float
) -> None:
    """Told a larger deviation, it sees images that are too faint; told a smaller one, its images must be faint."""
    honest, weights = digits_teacher
    model = load_teacher(honest, weights)
    told: TeacherSpec = honest.model_copy(update={"std": [factor * std for std in honest.std]})
    posted = {"teacher": "t", "images_per_class": 4, "phases": [{"resolution": 16, "iterations": 60}]}

    def made(of: TeacherSpec) -> SynthesisedShard:
        with DeepInversion(model, of, SynthesisSpec.resolve(posted, of)) as inversion:
            return inversion.shard(0)

    assert warnings(made(honest)) == []
    assert warnings(made(told)) != []


def test_halves_count_by_their_images() -> None:
    digits = real_digits()[0].images[:30]
    (one,), (other,) = shard(digits[:10], 0).batches, shard(digits[10:], 0).batches
    both = SynthesisedShard(
        index=0,
        samples=range(30),
        batches=[replace(one, first_layer_variance=1.0), replace(other, first_layer_variance=16.0)],
    )
    assert "11 times" in warnings(both)[0]
