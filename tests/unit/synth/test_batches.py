"""Every sample in exactly one batch of exactly one shard, whatever the numbers."""

from collections import Counter
from contextlib import nullcontext

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dearkd.errors import InvalidInput
from dearkd.specs import SynthesisSpec, TeacherSpec
from dearkd_synth.batches import sample_label, shard_batches, shard_samples

TEACHER = TeacherSpec(
    name="t", architecture="resnet10t", num_classes=40, in_chans=1, image_size=32, mean=[0.5], std=[0.5]
)


@st.composite
def specs(draw: st.DrawFn) -> SynthesisSpec:
    classes = draw(st.lists(st.integers(0, 39), min_size=1, max_size=12, unique=True))
    classes_per_batch = draw(st.integers(1, len(classes)))
    images_per_class = draw(st.integers(1, 20))
    return SynthesisSpec.resolve(
        {
            "teacher": "t",
            "classes": classes,
            "images_per_class": images_per_class,
            "rounds": draw(st.integers(1, images_per_class)),
            "classes_per_batch": classes_per_batch,
            "batch_size": classes_per_batch * draw(st.integers(1, 8)),
            "shard_samples": draw(st.integers(1, 60)),
            "weights": {"boundary": 0.0},
        },
        TEACHER,
    )


@settings(max_examples=300)
@given(specs())
def test_shards_and_batches_cover_the_job_exactly(spec: SynthesisSpec) -> None:
    seen: list[int] = []
    for shard, length in enumerate(spec.shard_lengths()):
        samples = [sample for batch in shard_batches(spec, shard) for sample in batch]
        assert samples == list(shard_samples(spec, shard))
        assert len(samples) == length
        seen += samples
    assert seen == list(range(spec.num_samples))
    labels = Counter(sample_label(spec, sample) for sample in seen)
    assert labels == dict.fromkeys(spec.classes, spec.images_per_class)


@settings(max_examples=300)
@given(specs())
def test_batches_are_p_by_k(spec: SynthesisSpec) -> None:
    groups = [
        set(spec.classes[i : i + spec.classes_per_batch]) for i in range(0, len(spec.classes), spec.classes_per_batch)
    ]
    for shard in range(spec.num_shards):
        for batch in shard_batches(spec, shard):
            assert 0 < len(batch) <= spec.batch_size
            counts = Counter(sample_label(spec, sample) for sample in batch)
            (group,) = [group for group in groups if counts.keys() <= group]
            per_class = [counts[label] for label in group]
            assert max(per_class) - min(per_class) <= 1


def lone_batches(spec: SynthesisSpec) -> list[range]:
    """Batches in which no image has another of its class, in the batch or in its shard before."""
    found = []
    for shard in range(spec.num_shards):
        before: set[int] = set()
        for batch in shard_batches(spec, shard):
            labels = [sample_label(spec, sample) for sample in batch]
            if len(set(labels)) == len(labels) and before.isdisjoint(labels):
                found.append(batch)
            before |= set(labels)
    return found


@settings(max_examples=300)
@given(specs())
def test_a_boundary_weight_is_refused_where_a_batch_has_no_positives_and_0_by_default(spec: SynthesisSpec) -> None:
    posted = spec.model_dump(mode="json", exclude={"weights"})
    lone = bool(lone_batches(spec))
    assert (SynthesisSpec.resolve(posted, TEACHER).weights.boundary == 0) is lone
    with pytest.raises(InvalidInput, match="/weights/boundary") if lone else nullcontext():
        SynthesisSpec.resolve(posted | {"weights": {"boundary": 1.0}}, TEACHER)


@settings(max_examples=200)
@given(
    classes=st.integers(1, 40),
    images_per_class=st.integers(2, 400),
    preset=st.sampled_from(["auto", "draft", "published-cifar", "published-imagenet"]),
)
def test_default_shards_leave_no_batch_without_positives(classes: int, images_per_class: int, preset: str) -> None:
    posted = {"teacher": "t", "classes": [*range(classes)], "images_per_class": images_per_class, "preset": preset}
    spec = SynthesisSpec.resolve(posted, TEACHER)
    assert spec.weights.boundary > 0
    assert lone_batches(spec) == []


@pytest.mark.parametrize("images_per_class", [50, 100, 150, 333, 499])
def test_no_default_batch_is_a_crumb(images_per_class: int) -> None:
    """Of 19 classes the last group has 9; a batch should have 8 images of each class."""
    posted = {
        "teacher": "t",
        "classes": [*range(19)],
        "images_per_class": images_per_class,
        "preset": "published-imagenet",
    }
    spec = SynthesisSpec.resolve(posted, TEACHER)
    for shard in range(spec.num_shards):
        for batch in shard_batches(spec, shard):
            labels = Counter(sample_label(spec, sample) for sample in batch)
            assert min(labels.values()) >= 2, (spec.shard_samples, batch)


def test_a_ragged_shard_is_cut_into_equal_batches() -> None:
    spec = SynthesisSpec.resolve(
        {"teacher": "t", "classes": [0, 1], "images_per_class": 101, "batch_size": 200, "classes_per_batch": 2},
        TEACHER,
    )
    assert spec.num_shards == 1
    assert [len(batch) for batch in shard_batches(spec, 0)] == [101, 101]


def test_the_order_of_samples_is_fixed() -> None:
    """Readers and retries rely on it: class groups in the order asked for, classes in turn inside a group."""
    spec = SynthesisSpec.resolve(
        {
            "teacher": "t",
            "classes": [7, 3, 9],
            "images_per_class": 2,
            "batch_size": 4,
            "classes_per_batch": 2,
            "shard_samples": 4,
        },
        TEACHER,
    )
    assert [sample_label(spec, sample) for sample in range(6)] == [7, 3, 7, 3, 9, 9]
    assert [shard_batches(spec, shard) for shard in range(2)] == [[range(4)], [range(4, 6)]]


def test_what_does_not_exist_is_refused() -> None:
    spec = SynthesisSpec.resolve({"teacher": "t", "images_per_class": 2}, TEACHER)
    for shard in (-1, spec.num_shards):
        with pytest.raises(IndexError, match=f"there are {spec.num_shards}"):
            shard_batches(spec, shard)
    for sample in (-1, spec.num_samples):
        with pytest.raises(IndexError, match=f"there are {spec.num_samples}"):
            sample_label(spec, sample)
