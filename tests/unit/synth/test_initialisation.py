"""Batches that begin from the images of the one before: rolled images, classes, shards for themselves, defaults."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from dearkd.errors import InvalidInput
from dearkd.specs import SynthesisSpec
from dearkd_synth.engine.resizing import resize
from dearkd_synth.initialisation import NOISE, SHIFT, EarlierBatch, initial
from dearkd_synth.inversion import DeepInversion, Step


def rolled_from(image: Tensor, candidates: Tensor, most: int) -> list[int]:
    """Those of the candidates that the image is a rolled copy of."""
    shifts = list(itertools.product(range(-most, most + 1), repeat=2))
    return [
        number
        for number, candidate in enumerate(candidates)
        if any(torch.allclose(image, candidate.roll(shift, (1, 2)), atol=1e-5) for shift in shifts)
    ]


@pytest.mark.parametrize("side", [8, 16])
def test_each_image_begins_as_one_of_its_class_from_before(side: int) -> None:
    generator = torch.Generator().manual_seed(0)
    earlier = EarlierBatch(torch.randn(6, 3, 8, 8, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2]))
    labels = torch.tensor([1, 1, 1, 0, 2, 1])
    noise = torch.randn(6, 3, side, side, generator=generator)
    x, labelled = initial(noise, labels, earlier, generator)
    assert labelled
    found = [rolled_from(image, resize(earlier.x, side), round(SHIFT * side)) for image in x - NOISE * noise]
    assert found == [[1], [4], [1], [0], [2], [4]], "those of a class in turn"


@pytest.mark.parametrize("earlier", [None, EarlierBatch(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))])
def test_noise_where_a_class_was_not_made_before(earlier: EarlierBatch | None) -> None:
    noise = torch.randn(2, 3, 8, 8)
    x, labelled = initial(noise, torch.tensor([0, 2]), earlier, torch.Generator())
    assert not labelled
    assert torch.equal(x, noise)


def posted(init: str) -> dict[str, Any]:
    return {
        "teacher": "t",
        "images_per_class": 8,
        "classes": [0, 1, 2],
        "batch_size": 6,
        "shard_samples": 12,
        "phases": [{"resolution": 16, "iterations": 4}],
        "unlabelled_iterations": 2,
        "learning_rate": 0.1,
        "init": init,
    }


def test_a_shard_begins_from_noise_and_goes_on_from_its_own_batches(small_teacher) -> None:
    model, teacher_spec = small_teacher()
    made = {}
    for init in ("noise", "earlier_batch"):
        spec = SynthesisSpec.resolve(posted(init), teacher_spec)
        labelled: list[tuple[int, int]] = []

        def noted(step: Step, labelled: list[tuple[int, int]] = labelled) -> None:
            if step.iteration == 1:
                labelled.append((step.batch, "cross_entropy" in step.losses))

        with DeepInversion(model, teacher_spec, spec, on_step=noted) as inversion:
            made[init] = [inversion.shard(shard).images for shard in (0, 1)]
        with DeepInversion(model, teacher_spec, spec) as inversion:
            assert torch.equal(inversion.shard(1).images, made[init][1]), "whatever was made before"
        # Images from before have their labels at once; noise gets them late.
        assert labelled == [(0, False), (1, init == "earlier_batch")] * 2
    for noise, earlier in zip(made["noise"], made["earlier_batch"], strict=True):
        assert torch.equal(noise[:6], earlier[:6])
        assert not torch.equal(noise[6:], earlier[6:])


def test_its_defaults_are_small_batches_many_to_a_shard_and_a_lower_rate(small_teacher) -> None:
    _, teacher_spec = small_teacher()
    plain, goes_on = (
        SynthesisSpec.resolve({"teacher": "t", "images_per_class": 500, "init": init, "generator": None}, teacher_spec)
        for init in ("noise", "earlier_batch")
    )
    assert goes_on.batch_size // goes_on.classes_per_batch == 5 < plain.batch_size // plain.classes_per_batch
    assert goes_on.shard_samples >= 20 * goes_on.batch_size
    few = SynthesisSpec.resolve({"teacher": "t", "images_per_class": 2, "init": "earlier_batch"}, teacher_spec)
    assert few.shard_samples > few.batch_size
    assert goes_on.learning_rate == pytest.approx(0.375 * plain.learning_rate, abs=1e-4)


def test_a_shard_of_one_batch_has_none_before(small_teacher) -> None:
    _, teacher_spec = small_teacher()
    with pytest.raises(InvalidInput, match="made in one batch of 12: leave out batch_size") as refused:
        SynthesisSpec.resolve(posted("earlier_batch") | {"batch_size": 12}, teacher_spec)
    assert refused.value.errors[0].pointer == "/init"
