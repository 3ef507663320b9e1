"""Images that come out of a generator: its form, its steps against two Adams by hand, shards, and what is refused."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from dearkd.errors import InvalidInput
from dearkd.specs import GeneratorSpec, SynthesisSpec
from dearkd_synth.beginnings import Beginnings
from dearkd_synth.generator import Generator
from dearkd_synth.inversion import DeepInversion, Step
from dearkd_synth.parametrisation import Generated

BLACK, WHITE = [-0.5, -2.0, -1.0], [1.5, 2.0, 3.0]
SMALL = GeneratorSpec(width=16, latent_dim=8, learning_rate=0.01)


def generator(resolution: int = 16, *, seed: int = 0, spec: GeneratorSpec = SMALL) -> Generator:
    return Generator(spec, resolution, BLACK, WHITE, seed=seed)


@pytest.mark.parametrize("resolution", [4, 8, 15, 28, 32, 48, 75, 224])
def test_images_have_any_size_and_lie_in_the_range_of_pixels(resolution: int) -> None:
    latents = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    images = generator(resolution)(latents)
    assert images.shape == (32, 3, resolution, resolution)
    for channel, (black, white) in enumerate(zip(BLACK, WHITE, strict=True)):
        values = images[:, channel]
        assert black <= values.min() <= values.max() <= white
        # They begin about the mean pixel, which is 0, wherever that lies between black and white, in many colours.
        assert values.mean().abs() < 0.2 * (white - black)
        assert values.mean((1, 2)).std() > 0.05 * (white - black)


def test_weights_follow_from_the_seed_alone_and_leave_other_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, other = generator(seed=1), generator(seed=2)
    assert torch.equal(torch.rand(3), expected)
    again = generator(seed=1)
    for name, weights in one.state_dict().items():
        assert torch.equal(weights, again.state_dict()[name])
    assert not torch.equal(one._maps.weight, other._maps.weight)


def test_steps_are_those_of_one_adam_for_latents_and_one_for_weights(small_teacher: Any) -> None:
    _, teacher = small_teacher()
    spec = SynthesisSpec.resolve(posted(learning_rate=0.2, betas=[0.5, 0.9]), teacher)
    assert spec.generator is not None
    latents = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    target = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    network = generator()
    ours = Generated(spec, copy.deepcopy(network), latents.clone())
    ours.begin_phase(16, 0.1)  # half of the spec's, as after a restart: of the weights it is half then too
    z = latents.clone().requires_grad_()
    adams = [
        (torch.optim.Adam([z], betas=(0.5, 0.9)), 0.1),
        (torch.optim.Adam(network.parameters(), betas=(0.5, 0.9)), 0.5 * spec.generator.learning_rate),
    ]

    def loss(images: Tensor) -> Tensor:
        return ((images - target) ** 2).mean()

    for factor in (1.0, 0.7, 0.4, 0.1):
        ours.set_rate_factor(factor)
        images = ours.images()
        torch.testing.assert_close(ours.current, images.detach())
        expected = network(z)
        torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-5)
        ours.step(loss(images))
        for adam, rate in adams:
            adam.param_groups[0]["lr"] = rate * factor
            adam.zero_grad()
        loss(expected).backward()
        for adam, _ in adams:
            adam.step()
    assert loss(network(z)) < loss(generator()(latents))


def posted(**fields: Any) -> dict[str, Any]:
    return {
        "teacher": "t",
        "preset": "published-cifar",
        "generator": {"width": 16, "latent_dim": 8},
        "images_per_class": 8,
        "batch_size": 20,
        "shard_samples": 20,
        "phases": [{"resolution": 16, "iterations": 6}],
        **fields,
    }


def test_a_shard_is_a_function_of_spec_and_index_whatever_was_made_before(small_teacher: Any) -> None:
    model, teacher = small_teacher()
    spec = SynthesisSpec.resolve(posted(), teacher)
    assert spec.num_shards > 1
    with DeepInversion(model, teacher, spec) as inversion:
        first, second = inversion.shard(0).images, inversion.shard(1).images
    with DeepInversion(model, teacher, spec) as inversion:
        again = inversion.shard(1).images
    assert torch.equal(second, again)
    assert not torch.equal(first, second)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Generated, Tensor]]:
    """All batches from here on, as they are when they begin: what they are made of, and its first weights then."""
    batches: list[tuple[Generated, Tensor]] = []
    begin = Beginnings.begin

    def remember(self: Beginnings, labels: Tensor, drawn: torch.Generator) -> Any:
        made_of, labelled = begin(self, labels, drawn)
        assert isinstance(made_of, Generated)
        batches.append((made_of, made_of.generator._maps.weight.detach().clone()))
        return made_of, labelled

    monkeypatch.setattr(Beginnings, "begin", remember)
    return batches


def test_the_next_batch_of_a_shard_goes_on_with_its_generator(
    small_teacher: Any, begun: list[tuple[Generated, Tensor]]
) -> None:
    model, teacher = small_teacher()
    labels = [0, 0, 1, 1] * 3
    with DeepInversion(model, teacher, SynthesisSpec.resolve(posted(), teacher)) as inversion:
        inversion.batch(labels, 1)
        inversion.batch(labels, 2, continue_shard=True)
        inversion.batch(labels, 1)
    (one, first), (_, second), (_, anew) = begun
    left = one.generator._maps.weight
    assert not torch.equal(first, left)
    assert torch.equal(second, left)
    assert torch.equal(anew, first)


def test_a_batch_that_begins_anew_does_so_with_the_generator_of_before(
    small_teacher: Any, begun: list[tuple[Generated, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one failure is put in by hand: no memory for the second batch, which is then made in halves."""
    model, teacher = small_teacher()
    spec = SynthesisSpec.resolve(posted(halve_batches=True, shard_samples=40, batch_size=20), teacher)
    step = Generated.step

    def fail_once(self: Generated, loss: Tensor) -> None:
        step(self, loss)
        if len(begun) == 2:
            raise torch.OutOfMemoryError("put in by a test")

    monkeypatch.setattr(Generated, "step", fail_once)
    with DeepInversion(model, teacher, spec) as inversion:
        shard = inversion.shard(0)
    assert shard.halved == 1
    _, (failed, second), (_, half), (_, other_half) = begun
    assert not torch.equal(failed.generator._maps.weight, second)
    assert torch.equal(half, second)
    assert not torch.equal(other_half, half)


def test_snapshots_show_what_it_makes(small_teacher: Any) -> None:
    model, teacher = small_teacher()
    taken: list[Tensor] = []

    def look(step: Step) -> None:
        assert step.camera is not None
        taken.append(step.camera.take(range(4), 16).images)

    spec = SynthesisSpec.resolve(posted(), teacher)
    with DeepInversion(model, teacher, spec, on_step=look) as inversion:
        shard = inversion.shard(0)
    assert len(taken) == 6
    assert not torch.equal(taken[0], taken[5])
    assert taken[0].float().std() > 0
    assert shard.images.shape == (20, teacher.in_chans, teacher.image_size, teacher.image_size)


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"pyramid_levels": 2}, "/pyramid_levels"),
        ({"init_std": 0.5}, "/init_std"),
        ({"init": "earlier_batch", "shard_samples": 40}, "/init"),
        ({"phases": [{"resolution": 8, "iterations": 3}, {"resolution": 16, "iterations": 3}]}, "/phases"),
    ],
)
def test_what_is_of_pixels_is_refused_beside_it(small_teacher: Any, fields: dict[str, Any], pointer: str) -> None:
    _, teacher = small_teacher()
    with pytest.raises(InvalidInput, match="set generator to null") as refused:
        SynthesisSpec.resolve(posted(**fields), teacher)
    assert pointer in [error.pointer for error in refused.value.errors]
    SynthesisSpec.resolve(posted(**fields) | {"generator": None}, teacher)


@pytest.mark.parametrize("wrong", [{"width": 0}, {"latent_dim": 0}, {"learning_rate": 0.0}, {"depth": 3}, 7])
def test_a_generator_that_is_none_is_refused(small_teacher: Any, wrong: Any) -> None:
    _, teacher = small_teacher()
    with pytest.raises(InvalidInput) as refused:
        SynthesisSpec.resolve(posted(generator=wrong), teacher)
    assert all(error.pointer.startswith("/generator") for error in refused.value.errors)
