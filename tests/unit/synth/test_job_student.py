"""The student that a job trains for itself: the same one each time, for every teacher, and fair to its shards."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dearkd.errors import CorruptData, Diverged, InvalidInput, OutOfMemory
from dearkd.specs import SynthesisSpec, SynthesisWeights, TeacherSpec
from dearkd_synth.inversion import DeepInversion
from dearkd_synth.student.adaptive_student import (
    AdaptiveStudent,
    agreement,
    load_adaptive_student,
    save_adaptive_student,
    train_adaptive_student,
)

pytestmark = pytest.mark.slow


def resolve(teacher: TeacherSpec, **posted: Any) -> SynthesisSpec:
    """Three shards of ten images: 0 and 2 are made first."""
    small = {
        "teacher": "t",
        "images_per_class": 6,
        "batch_size": 10,
        "shard_samples": 10,
        "phases": [{"resolution": 16, "iterations": 3}],
        "weights": {"adaptive": 1.0},
        "adaptive_every": 2,
        "adaptive_iterations": 4,
    }
    return SynthesisSpec.resolve(small | posted, teacher)


def coloured(count: int, seed: int) -> Tensor:
    """(count, 3, 32, 32), uint8: plain colours with some noise, of which a network can tell what it likes."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(40, 215, (count, 3, 1, 1), generator=generator)
    return (colours + torch.randint(-40, 40, (count, 3, 32, 32), generator=generator)).to(torch.uint8)


def test_it_is_the_same_each_time_whatever_torchs_own_generator_has_drawn(small_teacher) -> None:
    model, teacher = small_teacher()
    images = coloured(30, 0)
    made: list[dict[str, Tensor]] = []
    for number, spec in enumerate([resolve(teacher), resolve(teacher), resolve(teacher, seed=1)]):
        torch.manual_seed(number)
        made.append(train_adaptive_student(model, teacher, spec, images).state_dict())
        assert torch.initial_seed() == number
    assert all(torch.equal(value, made[1][name]) for name, value in made[0].items())
    assert not torch.equal(made[0]["classifier.weight"], made[2]["classifier.weight"])


def test_it_learns_the_teachers_answers(small_teacher) -> None:
    """To images that it was not trained on, better than the teacher's most frequent answer would."""
    model, teacher = small_teacher()
    spec = resolve(teacher, adaptive_iterations=120, batch_size=50, shard_samples=15, jitter=0)
    losses: list[float] = []
    student = train_adaptive_student(
        model, teacher, spec, coloured(400, 0), on_step=lambda _, loss: losses.append(loss)
    )
    assert (len(losses), student.training) == (120, False)
    assert losses[-1] < losses[0] / 4
    unseen = coloured(200, 1)
    with torch.no_grad():
        answers = model((unseen / 255 - 0.4) / 0.25).argmax(dim=1)
    most_frequent = answers.bincount().max().item() / 200
    assert most_frequent < 0.9, "else there is nothing to learn"
    agrees = agreement(model, student, teacher, unseen, batch_size=64)
    with torch.no_grad():
        expected = (student((unseen / 255 - 0.4) / 0.25).argmax(dim=1) == answers).float().mean().item()
    assert agrees == pytest.approx(expected, abs=0.011)
    assert agrees > most_frequent


def test_shards_that_it_is_trained_on_are_made_without_it_and_the_others_with_it(small_teacher) -> None:
    model, teacher = small_teacher()
    spec = resolve(teacher)
    assert list(spec.student_shards) == [0, 2]
    with DeepInversion(model, teacher, resolve(teacher, weights={"adaptive": 0.0}, adaptive_every=None)) as plain:
        expected = [plain.shard(index).images for index in range(3)]
    with DeepInversion(model, teacher, spec) as first:
        made = [first.shard(index) for index in spec.student_shards]
        with pytest.raises(ValueError, match=r"train one on the images of shards \[0, 2\]"):
            first.shard(1)
    student = train_adaptive_student(model, teacher, spec, torch.cat([shard.images for shard in made]))
    with DeepInversion(model, teacher, spec, adaptive_student=student) as then:
        competing = then.shard(1)
        again = then.shard(0)
    assert torch.equal(made[0].images, expected[0])
    assert torch.equal(made[1].images, expected[2])
    assert torch.equal(again.images, expected[0]), "whoever makes it, and whenever"
    assert "adaptive" not in again.batches[0].losses
    assert "adaptive" in competing.batches[0].losses
    assert not torch.equal(competing.images, expected[1])


@pytest.mark.parametrize(("image_size", "in_chans", "seen"), [(8, 1, 16), (32, 3, 32), (224, 3, 112)])
def test_it_is_stored_and_takes_images_of_every_size(
    tmp_path: Path, small_teacher, image_size: int, in_chans: int, seen: int
) -> None:
    _, teacher = small_teacher(image_size=image_size, in_chans=in_chans)
    student = AdaptiveStudent(teacher, seed=3).eval()
    save_adaptive_student(student, tmp_path / "s.safetensors")
    loaded = load_adaptive_student(tmp_path / "s.safetensors", teacher)
    x = torch.randn(2, in_chans, seen, seen, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded(x), student(x))
    assert loaded(x).shape == (2, 5)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("content", ["other tensors", "no safetensors"])
def test_a_file_that_holds_another_is_named(tmp_path: Path, small_teacher, content: str) -> None:
    path = tmp_path / "s.safetensors"
    if content == "other tensors":
        save_file({"x": torch.zeros(1)}, path)
    else:
        path.write_bytes(b"x" * 100)
    with pytest.raises(CorruptData, match=r"s\.safetensors holds no student for this teacher"):
        load_adaptive_student(path, small_teacher()[1])


def test_a_teacher_that_answers_nothing_finite_makes_no_student(small_teacher) -> None:
    _, teacher = small_teacher()

    class Nowhere(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.new_full((len(x), 5), torch.inf)

    with pytest.raises(Diverged, match="name an adaptive_student"):
        train_adaptive_student(Nowhere(), teacher, resolve(teacher), coloured(10, 0))


def test_too_little_memory_for_its_training_is_told(small_teacher) -> None:
    _, teacher = small_teacher()

    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError(f"CUDA out of memory: {len(x)} images")

    with pytest.raises(OutOfMemory, match=r"10 images of 32×32 pixels do not fit .* smaller batch_size"):
        train_adaptive_student(Large(), teacher, resolve(teacher), coloured(10, 0))
    with pytest.raises(OutOfMemory, match="7 images"):
        agreement(Large(), AdaptiveStudent(teacher), teacher, coloured(10, 0), batch_size=7)


@pytest.mark.parametrize(
    ("posted", "pointers"),
    [
        ({"images_per_class": 1, "classes": [0]}, ["/weights/adaptive"]),
        ({"images_per_class": 2, "shard_samples": 10}, ["/weights/adaptive"]),
        ({"weights": {"adaptive": 0.0}}, ["/adaptive_every"]),
        ({"adaptive_student": "mdl-1"}, ["/adaptive_every"]),
        ({"adaptive_every": 1}, ["/adaptive_every"]),
        ({"adaptive_iterations": 10**9}, ["/adaptive_iterations"]),
    ],
)
def test_where_no_student_can_be_trained_the_spec_is_refused(
    small_teacher, posted: dict[str, Any], pointers: list[str]
) -> None:
    with pytest.raises(InvalidInput) as caught:
        resolve(small_teacher()[1], **posted)
    assert [error.pointer for error in caught.value.errors] == pointers


def test_the_adaptive_term_alone_has_nothing_to_make_first_shards_of(small_teacher) -> None:
    nothing = dict.fromkeys(SynthesisWeights.model_fields, 0.0)
    with pytest.raises(InvalidInput, match="takes no part in the first shards"):
        resolve(small_teacher()[1], weights=nothing | {"adaptive": 1.0})


@pytest.mark.parametrize(
    ("posted", "shards", "every"),
    [
        ({"images_per_class": 400, "batch_size": 100, "shard_samples": 100}, 20, 10),  # each shard has all classes
        ({"images_per_class": 1}, 2, 10),  # one shard, had nothing been cut
        ({"images_per_class": 100, "classes_per_batch": 1, "batch_size": 10, "shard_samples": 25}, 20, 4),
        ({"images_per_class": 10, "classes_per_batch": 1, "batch_size": 10, "shard_samples": 10}, 5, 2),
    ],
)
def test_without_more_being_said_there_are_first_shards_and_others(
    small_teacher, posted: dict[str, Any], shards: int, every: int
) -> None:
    teacher = small_teacher()[1]
    spec = SynthesisSpec.resolve({"teacher": "t", "weights": {"adaptive": 1.0}} | posted, teacher)
    assert (spec.num_shards, spec.adaptive_every) == (shards, every)
    assert 0 < len(spec.student_shards) < spec.num_shards
    first, student, others, end = spec.units
    assert (student, end) == (["student"], ["finish"])
    assert first == [str(index) for index in range(0, shards, every)]
    assert sorted(first + others, key=int) == [str(index) for index in range(shards)]
    assert SynthesisSpec.resolve(spec.model_dump(mode="json"), teacher) == spec
