"""Images that choose their labels: against all ways to share them out, and inside the inversion."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from dearkd.errors import InvalidInput
from dearkd.specs import SynthesisSpec
from dearkd.vision.images import to_input
from dearkd_synth.inversion import DeepInversion, Step
from dearkd_synth.labelling import assign_labels, restore_order


def best_by_trying(labels: list[int], logits: Tensor) -> float:
    """The largest sum of log-probabilities that any order of the labels gives."""
    likely = torch.log_softmax(logits.double(), dim=1)
    return max(
        sum(likely[image, label].item() for image, label in enumerate(order))
        for order in itertools.permutations(labels)
    )


@pytest.mark.parametrize("seed", range(5))
def test_no_other_order_of_the_labels_fits_better(seed: int) -> None:
    logits = 3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
    labels = torch.tensor([2, 0, 0, 3, 1, 2])
    shared = assign_labels(labels, logits)
    assert sorted(shared.tolist()) == sorted(labels.tolist())
    likely = torch.log_softmax(logits.double(), dim=1)
    total = likely[torch.arange(6), shared].sum().item()
    assert total == pytest.approx(best_by_trying(labels.tolist(), logits), abs=1e-9)


def test_images_that_say_nothing_get_what_is_left() -> None:
    logits = torch.tensor([[9.0, 0.0], [torch.nan, torch.nan], [0.0, 9.0]])
    assert assign_labels(torch.tensor([1, 1, 0]), logits).tolist() == [0, 1, 1]


def test_images_go_where_their_labels_stand() -> None:
    labels, shared = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([2, 2, 1, 0, 0, 1])
    order = restore_order(labels, shared)
    assert sorted(order.tolist()) == list(range(6))
    assert torch.equal(shared[order], labels)
    assert torch.equal(restore_order(labels, labels), torch.arange(6)), "who has the label of the place stays"


def spec_of(teacher_spec: Any, **posted: Any) -> SynthesisSpec:
    small = {
        "teacher": "t",
        "images_per_class": 2,
        "classes": [0, 1, 2],
        "batch_size": 6,
        "phases": [{"resolution": 32, "iterations": 4}],
        "jitter": 0,
        "flip": 0.0,
        "unlabelled_iterations": 2,
        "image_format": "png",
    }
    return SynthesisSpec.resolve(small | posted, teacher_spec)


def test_only_statistics_and_priors_take_part_before(small_teacher) -> None:
    model, teacher_spec = small_teacher()
    steps: list[Step] = []
    spec = spec_of(teacher_spec, phases=[{"resolution": 32, "iterations": 27}], weights={"boundary": 1.0, "l2": 0.1})
    with DeepInversion(model, teacher_spec, spec, on_step=steps.append) as inversion:
        inversion.shard(0)
    assert {"batch_norm", "l2", "total"} <= set(steps[0].losses)
    assert not {"cross_entropy", "boundary"} & set(steps[0].losses)
    assert {"cross_entropy", "boundary", "batch_norm", "l2", "total"} <= set(steps[-1].losses)


def test_labels_fit_what_the_images_had_become(small_teacher) -> None:
    """At a rate so small that images stay what they were, no other order of the labels fits the stored ones better."""
    model, teacher_spec = small_teacher()
    spec = spec_of(teacher_spec, learning_rate=1e-7)
    with DeepInversion(model, teacher_spec, spec) as inversion:
        shard = inversion.shard(0)
    assert shard.labels.tolist() == [0, 1, 2, 0, 1, 2], "places keep their labels, images move"
    with torch.no_grad():
        logits = model(to_input(shard.images, teacher_spec))
    mine = torch.log_softmax(logits.double(), dim=1)[torch.arange(6), shard.labels].sum().item()
    assert mine == pytest.approx(best_by_trying(shard.labels.tolist(), logits), abs=1e-2)
    fixed = spec_of(teacher_spec, learning_rate=1e-7, unlabelled_iterations=0)
    with DeepInversion(model, teacher_spec, fixed) as inversion:
        same = inversion.shard(0)
    as_sets = [sorted(image.flatten().tolist() for image in made.images) for made in (shard, same)]
    assert as_sets[0] == as_sets[1], "the same images, in another order"
    assert not torch.equal(shard.images, same.images)


def test_the_same_bytes_again(small_teacher) -> None:
    model, teacher_spec = small_teacher()
    spec = spec_of(teacher_spec)
    made = []
    for _ in range(2):
        with DeepInversion(model, teacher_spec, spec) as inversion:
            made.append(inversion.shard(0).images)
    assert torch.equal(*made)


@pytest.mark.parametrize(
    ("posted", "why"),
    [({"unlabelled_iterations": 4}, "leaves none of 4"), ({"weights": {"batch_norm": 0.0}}, "batch_norm is 0")],
)
def test_what_leaves_nothing_to_go_by_is_refused(small_teacher, posted: dict[str, Any], why: str) -> None:
    _, teacher_spec = small_teacher()
    with pytest.raises(InvalidInput, match=why) as refused:
        spec_of(teacher_spec, **posted)
    assert refused.value.errors[0].pointer == "/unlabelled_iterations"
