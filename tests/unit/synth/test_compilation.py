"""The compiled step: the same numbers as written, one compilation for many steps, and what is told without a compiler.

Tracing is tested on whole teachers with a backend that generates no code; generated code on a tiny one.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dearkd.errors import InvalidInput
from dearkd.specs import SynthesisSpec, TeacherSpec
from dearkd_synth.engine.compilation import compiled_by, require_compiler
from dearkd_synth.inversion import DeepInversion, Step, SynthesisedShard
from dearkd_synth.objective.objective import Objective
from dearkd_synth.objective.term import FinishedBatch
from dearkd_synth.objective.terms.boundary import FeatureBank, boundary_loss

pytestmark = pytest.mark.slow


class TinyTeacher(nn.Module):
    """Two convolutions with BatchNorm: what a compiler is through with in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)
        )
        self.classifier = nn.Linear(8, 5)

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.layers(x).relu().mean(dim=(2, 3)))
        return logits


def tiny_teacher(model: nn.Module | None = None) -> tuple[nn.Module, TeacherSpec]:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = (model or TinyTeacher()).train()
        model(torch.randn(16, 3, 16, 16))
    spec = TeacherSpec(
        name="tiny", architecture="tiny", num_classes=5, in_chans=3, image_size=16, mean=[0.4] * 3, std=[0.25] * 3
    )
    return model.eval(), spec


ALL_TERMS = {"total_variation_l1": 0.01, "total_variation_l2": 0.01, "l2": 0.01, "boundary": 1.0}
FEW_TERMS = dict.fromkeys(ALL_TERMS, 0.0)
"""Of which there is less to compile."""


def resolve(teacher: TeacherSpec, **posted: Any) -> SynthesisSpec:
    small = {
        "teacher": "t",
        "images_per_class": 2,
        "batch_size": 10,
        "boundary_margin": -100.0,
        "weights": ALL_TERMS,
        "phases": [{"resolution": teacher.image_size, "iterations": 4}],
    }
    return SynthesisSpec.resolve(small | posted, teacher)


@pytest.fixture(autouse=True)
def compiled_before() -> Iterator[None]:
    """Nothing: what other tests have compiled is forgotten, and what this one has."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled is traced, and run as it was written: needs no compiler."""
    compile_it = torch.compile

    def trace(function: Any, *, fullgraph: bool, dynamic: bool, options: Any) -> Any:
        return compile_it(function, fullgraph=fullgraph, dynamic=dynamic, backend="eager")

    monkeypatch.setattr(torch, "compile", trace)


@pytest.fixture
def compiler() -> None:
    try:
        require_compiler(torch.device("cpu"))
    except InvalidInput as error:
        pytest.skip(error.message)


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def shard(
    model: nn.Module, teacher: TeacherSpec, spec: SynthesisSpec, index: int = 0, **options: Any
) -> tuple[SynthesisedShard, list[float]]:
    """A shard and the total at each of its steps."""
    totals: list[float] = []
    with DeepInversion(
        model, teacher, spec, on_step=lambda step: totals.append(step.losses["total"]), **options
    ) as inversion:
        return inversion.shard(index), totals


# Those whose layers differ most: each is compiled for ten seconds.
@pytest.mark.parametrize(
    "family_teacher", ["resnet10t", "mobilenetv3_small_050", "densenet121", "vgg11_bn"], indirect=True
)
def test_every_family_can_be_traced_and_gives_the_same(
    family_teacher: tuple[nn.Module, TeacherSpec], traced: None
) -> None:
    model, teacher = family_teacher
    phases = [{"resolution": 16, "iterations": 2}]
    plain, totals = shard(model, teacher, resolve(teacher, phases=phases))
    found, found_totals = shard(model, teacher, resolve(teacher, phases=phases, compile=True))
    assert found_totals == pytest.approx(totals, rel=1e-4)
    assert found.batches[0].losses == pytest.approx(plain.batches[0].losses, rel=1e-3, abs=1e-4)
    assert (found.images.int() - plain.images.int()).abs().float().mean() < 0.5


def test_nothing_is_compiled_anew_for_a_step_or_a_batch_or_a_shard_of_the_same_shapes(traced: None) -> None:
    """With and without labels, with and without images made before; then all is known, another inversion included."""
    model, teacher = tiny_teacher()
    spec = resolve(
        teacher,
        compile=True,
        images_per_class=16,
        shard_samples=40,
        statistics_memory=25,
        unlabelled_iterations=2,
        jitter=3,
        flip=0.5,
        crop_min_scale=0.3,
        schedule="cosine",
    )
    before, seen = graphs(), []

    def on_step(step: Step) -> None:
        seen.append(graphs() - before)

    with DeepInversion(model, teacher, spec, on_step=on_step) as inversion:
        before = graphs()  # of the test of the compiler
        inversion.shard(0)
        assert seen == [1, 1, 2, 2, 3, 3, 4, 4, *[4] * 8]
        inversion.shard(1)
    assert seen[-1] == 4


def test_more_variants_than_torch_allows_by_itself(traced: None) -> None:
    model, teacher = tiny_teacher()
    phases = [{"resolution": size, "iterations": 1} for size in range(7, 16)]
    made, _ = shard(model, teacher, resolve(teacher, compile=True, phases=phases, weights=FEW_TERMS))
    assert len(made.images) == 10


def test_a_teacher_that_cannot_be_traced_is_told(traced: None) -> None:
    class Talks(TinyTeacher):
        def forward(self, x: Tensor) -> Tensor:
            torch._dynamo.graph_break()
            return super().forward(x)

    model, teacher = tiny_teacher(Talks())
    with pytest.raises(InvalidInput, match="set compile to false") as caught:
        shard(model, teacher, resolve(teacher, compile=True))
    assert caught.value.errors[0].pointer == "/compile"


def test_without_a_compiler_nothing_is_begun() -> None:
    model, teacher = tiny_teacher()
    remedy = r"No working C\+\+ compiler .* install a C\+\+ compiler .* or set compile to false"
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(InvalidInput, match=remedy) as caught,
    ):
        DeepInversion(model, teacher, resolve(teacher, compile=True))
    assert caught.value.errors[0].pointer == "/compile"


def earlier_images() -> tuple[FinishedBatch, Tensor]:
    """A finished batch, some of its images of another class; images to begin with."""
    generator = torch.Generator().manual_seed(1)
    statistics = [(torch.full((n,), 0.1), torch.full((n,), 0.9)) for n in (4, 8)]
    features = torch.rand(15, 8, generator=generator)
    finished = FinishedBatch(labels=torch.arange(15) % 6, features=features, statistics=[statistics])
    return finished, torch.rand(10, 3, 16, 16, generator=generator) * 2


def test_the_losses_and_the_gradient_are_those_of_the_step_as_written(compiler: None) -> None:
    _, teacher = tiny_teacher()
    earlier, start = earlier_images()
    labels = torch.arange(10) % 5
    outcomes = []
    for compile_it in (False, True):
        spec = resolve(teacher, compile=compile_it, first_batch_norm_weight=10.0, statistics_memory=100)
        objective = Objective(spec, tiny_teacher()[0].requires_grad_(False))
        x = start.clone().requires_grad_()
        rows = []
        for step in range(3):
            view = x.roll((step, -step), (2, 3)).contiguous(memory_format=torch.channels_last)
            objective.keep(earlier)  # once more at each step: the batch's share falls
            objective.begin_phase(0, labels)
            found = objective.losses(x, view, labels)
            x.grad = None
            objective.total(found).backward()
            assert x.grad is not None
            rows.append(({name: loss.item() for name, loss in found.items()}, x.grad, objective.statistics))  # type: ignore[unreachable]
            with torch.no_grad():
                x -= 0.1 * x.grad
        outcomes.append(rows)
    for (losses, gradient, seen), (found_losses, found_gradient, found_seen) in zip(*outcomes, strict=True):
        assert set(losses) == {"cross_entropy", "batch_norm", *ALL_TERMS}
        assert found_losses == pytest.approx(losses, rel=1e-5)
        assert (found_gradient - gradient).norm() < 1e-4 * gradient.norm()
        for one, other in zip(seen, found_seen, strict=True):
            torch.testing.assert_close(other, one)


def test_compiled_twice_the_bytes_are_the_same(compiler: None) -> None:
    """The second time nothing is known of the first: neither in memory, nor in torch's caches of graphs."""
    model, teacher = tiny_teacher()
    spec = resolve(teacher, compile=True, weights=FEW_TERMS)
    made = []
    with (
        torch._inductor.config.patch(fx_graph_cache=False),
        torch._functorch.config.patch(enable_autograd_cache=False),
    ):
        for seed in range(2):
            torch.manual_seed(seed)
            torch.compiler.reset()
            made.append(shard(model, teacher, spec)[0])
    assert torch.equal(made[0].images, made[1].images)
    assert torch.equal(made[0].logits, made[1].logits)
    assert made[0].batches[0].losses == made[1].batches[0].losses
    plain, _ = shard(model, teacher, resolve(teacher, weights=FEW_TERMS))
    assert made[0].batches[0].losses == pytest.approx(plain.batches[0].losses, rel=1e-4)
    assert (made[0].images.int() - plain.images.int()).abs().float().mean() < 0.1


def test_what_compiled_is_recorded(compiler: None) -> None:
    assert compiled_by(torch.device("cpu"))["compiler"]


def test_a_padded_bank_has_the_same_loss(small_teacher) -> None:
    generator = torch.Generator().manual_seed(0)
    bank = FeatureBank()
    bank.add(torch.randn(7, 4, generator=generator), torch.tensor([0, 1, 0, 1, 3, 3, 4]))
    features, logits = torch.randn(4, 4, generator=generator), torch.randn(4, 5, generator=generator)
    for labels, kept in (([0, 1, 1, 0], 4), ([2, 2, 2, 2], 0)):
        given = torch.tensor(labels)
        plain, padded = bank.of(given), bank.of(given, multiple_of=6)
        assert plain is not None
        assert padded is not None
        assert (len(plain[1]), len(padded[1])) == (kept, 6)
        losses = [
            boundary_loss(features, logits, given, earlier, boundary_margin=-100.0, similarity_margin=-1.0)
            for earlier in (plain, padded)
        ]
        torch.testing.assert_close(losses[1], losses[0])
    assert FeatureBank().of(given, multiple_of=6) is None
