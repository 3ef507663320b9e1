"""Small batches matched together with what a shard holds: equal to one large batch, by plain hooks."""

import copy

import pytest
import torch
from torch import nn

from dearkd.errors import InvalidInput
from dearkd.specs import SynthesisSpec, SynthesisWeights, TeacherSpec
from dearkd_synth.inversion import DeepInversion
from dearkd_synth.objective.statistics import MatchedBatchNorm, StatisticsMatching
from dearkd_synth.objective.terms.batch_norm import StatisticsMemory
from tests.support.hook_reference import hook_reference

pytestmark = pytest.mark.slow


def images(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_a_batch_beside_earlier_ones_matches_as_one_large_batch_does(
    family_teacher: tuple[nn.Module, TeacherSpec],
) -> None:
    model = copy.deepcopy(family_teacher[0]).double().requires_grad_(False)
    parts = [images(4, 0), images(2, 1), images(3, 2)]
    layers = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    last = parts[2].requires_grad_()
    _, expected = hook_reference(model, torch.cat([parts[0], parts[1], last]), [1.0] * layers)
    (expected_gradient,) = torch.autograd.grad(expected, last)

    matching, memory = StatisticsMatching(model), StatisticsMemory(100)
    for part in parts[:2]:
        matching.start()
        model(part)
        memory.add(0, matching.collected(), len(part))
    matching.start()
    model(last)
    earlier = memory.beside(0, len(last))
    assert earlier is not None
    assert earlier.share == pytest.approx(3 / 9)
    loss = matching.loss(earlier)
    (gradient,) = torch.autograd.grad(loss, last)
    # Both are divided by the share: an image pulls as in the large batch, whose other terms are means over 9 images.
    torch.testing.assert_close(loss * 3 / 9, expected)
    torch.testing.assert_close(gradient * 3 / 9, expected_gradient)
    assert memory.beside(1, 3) is None, "another phase has statistics of its own"


def test_what_is_beyond_the_memory_is_averaged_away() -> None:
    """With room for 4 images and batches of 2, the average is ⅔ of what it was and ⅓ of the new."""
    memory = StatisticsMemory(4)
    kept = 0.0
    for value in (9.0, 3.0, 6.0, 0.0):
        memory.add(0, [(torch.tensor([value]), torch.tensor([0.0]))], 2)
        kept = value if value == 9 else (kept + value) / 2 if value == 3 else kept * 2 / 3 + value / 3
    earlier = memory.beside(0, 2)
    assert earlier is not None
    assert earlier.share == pytest.approx(1 / 3)
    assert earlier.statistics[0][0].item() == pytest.approx(kept)
    assert earlier.statistics[0][1].item() > 0  # the batches' means differ


def test_a_memory_of_none_keeps_nothing() -> None:
    memory = StatisticsMemory(0)
    memory.add(0, [(torch.zeros(1), torch.zeros(1))], 2)
    assert memory.beside(0, 2) is None


def posted(**fields: object) -> dict[str, object]:
    phases = [{"resolution": 16, "iterations": 8}, {"resolution": 32, "iterations": 8}]
    return {"teacher": "t", "images_per_class": 5, "batch_size": 5, "shard_samples": 25, "phases": phases} | fields


def distance_of_all(made: torch.Tensor, model: nn.Module, teacher: TeacherSpec) -> float:
    from dearkd.vision.images import to_input

    layers = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    return hook_reference(model, to_input(made, teacher), [1.0] * layers)[1].item()


def test_a_shard_of_small_batches_comes_nearer_to_the_teachers_statistics(small_teacher) -> None:
    """Five batches of five images: judged as one set of 25, by hooks, the memory brings them nearer."""
    model, teacher = small_teacher()
    weights = dict.fromkeys(SynthesisWeights.model_fields, 0.0) | {"cross_entropy": 0.1, "batch_norm": 10.0}
    distances = []
    for memory in (0, 25):
        spec = SynthesisSpec.resolve(
            posted(statistics="l2", statistics_memory=memory, weights=weights, learning_rate=0.15, seed=1), teacher
        )
        with DeepInversion(model, teacher, spec) as inversion:
            made = inversion.shard(0)
            assert torch.equal(inversion.shard(0).images, made.images), "a shard stays a function of the spec alone"
        with torch.no_grad():
            distances.append(distance_of_all(made.images, model, teacher))
    assert distances[1] < distances[0]


def test_layers_have_weights_and_one_that_weighs_nothing_is_not_looked_at() -> None:
    model = nn.Sequential(*(layer for _ in range(3) for layer in (nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))).double()
    model = model.eval().requires_grad_(False)
    x = images(4, 3).requires_grad_()
    _, expected = hook_reference(model, x, [10.0 * 0.5, 0.0, 2.0])
    matching = StatisticsMatching(model, first_weight=10.0, layer_weights=[0.5, 0.0, 2.0])
    matching.start()
    model(x)
    torch.testing.assert_close(matching.loss(), expected)
    layers = [module for module in model.modules() if isinstance(module, MatchedBatchNorm)]
    assert [len(layer.statistics) for layer in layers] == [1, 0, 1]
    assert len(matching.collected()) == 2


@pytest.mark.parametrize("weights", [[1.0], [0.0] * 100])
def test_weights_that_do_not_fit_the_teacher_are_refused(small_teacher, weights: list[float]) -> None:
    model, teacher = small_teacher()
    count = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    spec = SynthesisSpec.resolve(posted(), teacher)
    with pytest.raises(InvalidInput) as caught:
        DeepInversion(model, teacher, spec.model_copy(update={"batch_norm_layer_weights": weights[:count]}))
    assert caught.value.errors[0].pointer == "/batch_norm_layer_weights"
