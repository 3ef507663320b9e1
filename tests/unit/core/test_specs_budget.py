"""Budgets of synthesis jobs: what follows from them, against a search of all that could be chosen; what is refused."""

import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dearkd.errors import InvalidInput
from dearkd.specs import Limits, SynthesisSpec, TeacherSpec
from tests.support.specs import TEACHER

LARGE = TeacherSpec(
    name="t", architecture="resnet10t", num_classes=1000, in_chans=3, image_size=224, mean=[0.5] * 3, std=[0.5] * 3
)


def resolve(teacher: TeacherSpec = TEACHER, limits: Limits | None = None, **fields: Any) -> SynthesisSpec:
    return SynthesisSpec.resolve({"teacher": "t", **fields}, teacher, limits)


def iterations(spec: SynthesisSpec) -> int:
    return sum(phase.iterations for phase in spec.phases)


def test_what_resolved_before_there_were_budgets_resolves_as_it_did() -> None:
    """Specs as they were resolved, with their shards and units, by the version before `budget` and `rounds`."""
    for case in json.loads(Path(__file__).with_name("resolved_specs.json").read_text(encoding="utf-8")):
        posted = {"teacher": "tch", "generator": None, **case["posted"]}
        spec = SynthesisSpec.resolve(posted, TeacherSpec.check(case["teacher"]))
        resolved = spec.model_dump(mode="json")
        assert resolved.pop("generator") is None
        assert (resolved.pop("init"), resolved.pop("init_std"), resolved.pop("pyramid_levels")) == ("noise", 1.0, 1)
        assert (resolved.pop("budget"), resolved.pop("rounds"), resolved.pop("resources")) == (None, 1, None)
        assert resolved == case["spec"]
        assert (spec.shard_lengths(), spec.units) == (case["shards"], case["units"])


teachers = st.sampled_from([TEACHER, LARGE])
presets = st.sampled_from(["auto", "draft", "published-imagenet", "published-cifar"])


@given(
    passes=st.integers(1, 3_000_000),
    teacher=teachers,
    preset=presets,
    classes=st.lists(st.integers(0, 9), min_size=1, unique=True),
    batch=st.none() | st.integers(1, 40),
)
def test_no_more_images_fit_a_budget_of_passes(
    passes: int, teacher: TeacherSpec, preset: str, classes: list[int], batch: int | None
) -> None:
    usual = resolve(teacher, preset=preset)
    most, least = iterations(usual), max(len(usual.phases), iterations(usual) // 4)
    share = usual.batch_size // usual.classes_per_batch
    fields: dict[str, Any] = {"preset": preset, "classes": classes, "budget": {"teacher_passes": passes}}
    if batch is not None:
        fields |= {"batch_size": batch * len(classes), "classes_per_batch": len(classes)}

    def fits(images: int, each: int) -> bool:
        return images * len(classes) * each <= passes

    # The rule, searched for step by step: images at the preset's iterations; fewer iterations for a share of a batch;
    # fewer images at the fewest iterations.
    whole = next(n for n in count() if not fits(n + 1, most))
    if whole >= share:
        expected = (whole, most)
    else:
        images = max((n for n in range(share + 1) if fits(n, least)), default=0)
        expected = (images, max((i for i in range(least, most + 1) if images and fits(images, i)), default=0))
    if not expected[0]:
        with pytest.raises(InvalidInput, match=f"take {least * len(classes)}: give at least that") as caught:
            resolve(teacher, **fields)
        assert [error.pointer for error in caught.value.errors] == ["/budget/teacher_passes"]
        resolve(teacher, **fields | {"budget": {"teacher_passes": least * len(classes)}})
        return
    spec = resolve(teacher, **fields)
    assert (spec.images_per_class, iterations(spec)) == expected
    assert spec.teacher_passes <= passes
    assert [phase.resolution for phase in spec.phases] == [phase.resolution for phase in usual.phases]
    assert min(phase.iterations for phase in spec.phases) >= 1
    shown = spec.model_dump(mode="json")
    assert shown["budget"] == {"teacher_passes": passes}
    assert min(spec.cut_in_rounds.sizes()) >= min(share, spec.images_per_class)
    assert SynthesisSpec.resolve(shown, teacher) == spec


@given(passes=st.integers(1, 300_000), images=st.integers(1, 60))
def test_iterations_follow_where_the_images_are_given(passes: int, images: int) -> None:
    most, least = 100, 25
    fitting = [each for each in range(least, most + 1) if images * 10 * each <= passes]
    if not fitting:
        with pytest.raises(InvalidInput, match="give at least that") as caught:
            resolve(budget={"teacher_passes": passes}, images_per_class=images)
        (error,) = caught.value.errors
        assert error.pointer == "/budget/teacher_passes"
        assert f"take {images * 10 * least}:" in error.detail
        fewer = passes // (10 * least)
        assert (f"set images_per_class to {fewer}" in error.detail) is (fewer > 0)
        return
    spec = resolve(budget={"teacher_passes": passes}, images_per_class=images)
    assert (spec.images_per_class, iterations(spec)) == (images, max(fitting))
    assert spec.unlabelled_iterations < iterations(spec)


def test_phases_keep_their_parts_of_the_iterations() -> None:
    spec = resolve(LARGE, preset="published-imagenet", classes=[1, 2], budget={"teacher_passes": 16 * 1500})
    assert [phase.iterations for phase in spec.phases] == [1000, 500]


@pytest.mark.parametrize(
    ("fields", "pointer", "remedy"),
    [
        ({"budget": {}}, "/budget", "exactly one"),
        ({"budget": {"teacher_passes": 10**6, "minutes": 5}}, "/budget", "exactly one"),
        ({"budget": {"teacher_passes": None, "minutes": None}}, "/budget", "exactly one"),
        ({"budget": {"teacher_passes": 0}}, "/budget/teacher_passes", "greater than or equal to 1"),
        ({"budget": {"teacher_passes": 1.5e6}}, "/budget/teacher_passes", "integer"),
        ({"budget": {"teacher_passes": "2M"}}, "/budget/teacher_passes", "integer"),
        ({"budget": {"minutes": 0}}, "/budget/minutes", "greater than 0"),
        ({"budget": {"minutes": -1}}, "/budget/minutes", "greater than 0"),
        ({"budget": {"minutes": float("inf")}}, "/budget/minutes", "finite"),
        ({"budget": {"minutes": 1e308}}, "/budget/minutes", "less than or equal to 5256000"),
        ({"budget": {"minutes": 5, "stop_below": float("nan")}}, "/budget/stop_below", "finite"),
        ({"budget": {"teacher_passes": 2**63}, "images_per_class": 2}, "/budget/teacher_passes", "less than"),
        ({"budget": {"minutes": True}}, "/budget/minutes", "number"),
        ({"budget": {"hours": 1}}, "/budget/hours", "unknown field"),
        ({"budget": 30}, "/budget", "object"),
        ({"budget": {"teacher_passes": 249}}, "/budget/teacher_passes", "take 250: give at least that"),
        ({"budget": {"teacher_passes": 10**12}}, "/budget/teacher_passes", "give at most 1000000000"),
        ({"budget": {"minutes": 5}, "phases": [{"resolution": 8, "iterations": 9}]}, "/budget", "leave out phases"),
        (
            {"budget": {"teacher_passes": 10**6}, "phases": [{"resolution": 16, "iterations": 200}]},
            "/budget",
            "leave out phases",
        ),
        ({"budget": {"minutes": 5}, "weights": {"adaptive": 1.0}}, "/budget", "name an adaptive_student"),
        ({"rounds": 2, "weights": {"adaptive": 1.0}}, "/rounds", "name an adaptive_student"),
        ({"rounds": 0}, "/rounds", "greater than or equal to 1"),
        ({"rounds": 201}, "/rounds", "set at most that"),
        ({"rounds": 10**12}, "/rounds", "set at most that"),
        ({"budget": {"minutes": 5}, "images_per_class": 3, "rounds": 4}, "/rounds", "set at most that"),
        ({"budget": {"minutes": 5}, "images_per_class": 10**6 + 1}, "/images_per_class", "this server allows"),
    ],
)
def test_what_a_budget_refuses(fields: dict[str, Any], pointer: str, remedy: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        resolve(**fields)
    assert [error.pointer for error in caught.value.errors] == [pointer]
    assert remedy in caught.value.errors[0].detail


def test_a_complete_spec_that_contradicts_its_budget_is_refused() -> None:
    """A dry run's answer may be posted as it is, but not with more images."""
    shown = resolve(budget={"teacher_passes": 100_000}).model_dump(mode="json")
    with pytest.raises(InvalidInput, match="take 101000: leave them out") as caught:
        SynthesisSpec.resolve(shown | {"images_per_class": 101}, TEACHER)
    assert caught.value.errors[0].pointer == "/budget/teacher_passes"


@given(
    teacher=teachers,
    preset=presets,
    images=st.none() | st.integers(1, 500),
    classes=st.integers(1, 60),
    batch=st.none() | st.integers(1, 30),
)
def test_minutes_plan_rounds_of_full_batches(
    teacher: TeacherSpec, preset: str, images: int | None, classes: int, batch: int | None
) -> None:
    fields: dict[str, Any] = {"preset": preset, "classes": [*range(min(classes, teacher.num_classes))]}
    if images is not None:
        fields["images_per_class"] = images
    if batch is not None:
        fields |= {"classes_per_batch": 1, "batch_size": batch}
    usual = resolve(teacher, preset=preset)
    spec = resolve(teacher, **fields, budget={"minutes": 5})
    assert spec.phases == usual.phases
    share = usual.batch_size // usual.classes_per_batch
    if usual.generator is not None:
        share = max(share, 2 * (resolve(teacher, preset="auto").batch_size // usual.classes_per_batch))
    if images is None:
        assert spec.images_per_class >= 10 * usual.images_per_class
    else:
        assert spec.images_per_class == images
    sizes = spec.cut_in_rounds.sizes()
    assert min(sizes) >= min(share, spec.images_per_class)
    assert max(sizes) - min(sizes) <= 1
    assert spec.rounds == 1 or spec.may_end_early
    assert spec.least_samples == min(sizes) * len(spec.classes) or spec.rounds == 1
    assert SynthesisSpec.resolve(spec.model_dump(mode="json"), teacher) == spec


def test_a_plan_keeps_to_what_the_server_allows() -> None:
    spec = resolve(limits=Limits(max_images=3000), budget={"minutes": 5})
    assert (spec.images_per_class, spec.rounds) == (300, 15)
    small = resolve(limits=Limits(max_images=70), budget={"minutes": 5})
    assert (small.images_per_class, small.rounds) == (7, 1)
    with pytest.raises(InvalidInput, match="/images_per_class"):
        resolve(limits=Limits(max_images=7), budget={"minutes": 5})


def test_rounds_of_ones_own_are_compared_with_the_images_that_are_planned() -> None:
    """A budget of minutes plans more than the preset's 200 images of each class, or fewer where fewer are allowed."""
    spec = resolve(budget={"minutes": 5}, rounds=300)
    assert (spec.images_per_class, spec.rounds) == (2000, 300)
    for most, planned in ((70, 7), (7, 1)):
        with pytest.raises(InvalidInput, match=f"/rounds: 20, .* images_per_class is {planned}: set at most that"):
            resolve(limits=Limits(max_images=most), budget={"minutes": 5}, rounds=20)


def test_where_rounds_make_too_many_shards_the_remedy_helps() -> None:
    limits = Limits(max_shards=20)
    with pytest.raises(InvalidInput, match="set it to at least 1000, and rounds to at most 20"):
        resolve(limits=limits, budget={"minutes": 5})
    assert resolve(limits=limits, budget={"minutes": 5}, rounds=20, shard_samples=1000).num_shards == 20
