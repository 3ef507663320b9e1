"""How many images a run trains on, and the batches that go with it; the split itself is the independent witness."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dearkd.errors import InvalidInput
from dearkd.specs import DatasetFacts, TrainingSpec
from dearkd.vision.shards import split
from tests.support.specs import FACTS, TEACHER


def facts(*class_samples: int) -> DatasetFacts:
    return DatasetFacts(
        num_samples=sum(class_samples),
        num_classes=len(class_samples),
        image_size=32,
        in_chans=1,
        synthetic=True,
        mirrored=False,
        teacher="tch",
        class_samples=class_samples,
    )


def resolve(known: DatasetFacts, **posted: object) -> TrainingSpec:
    teacher = TEACHER.model_copy(update={"num_classes": known.num_classes})
    return TrainingSpec.resolve({"dataset": "ds", **posted}, known, teacher)


def trained(known: DatasetFacts, fraction: float, holdout: float, seed: int) -> int:
    labels = np.repeat(np.arange(len(known.class_samples)), known.class_samples)
    return len(split(labels, fraction=fraction, holdout=holdout, seed=seed)[0])


@settings(max_examples=100)
@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any),
    fraction=st.floats(0.001, 1.0),
    holdout=st.just(0.0) | st.floats(0.0, 0.99),
    seed=st.integers(0, 2**31),
)
def test_the_split_trains_on_as_many_images_as_were_told(
    counts: list[int], fraction: float, holdout: float, seed: int
) -> None:
    known = facts(*counts)
    told = known.trained_images(fraction, holdout)
    assert told.minimum <= trained(known, fraction, holdout, seed) <= told.maximum
    assert told.minimum <= told.expected <= told.maximum
    if holdout == 0:
        assert told.minimum == told.maximum


@pytest.mark.parametrize(
    ("counts", "fraction", "holdout"),
    [([4] * 10, 0.01, 0.05), ([40] * 10, 0.5, 0.1), ([1] * 50, 1.0, 0.4), ([20, 40, 0], 1.0, 0.05)],
)
def test_where_the_holdout_is_whole_the_number_is_exact(counts: list[int], fraction: float, holdout: float) -> None:
    known = facts(*counts)
    exact = trained(known, fraction, holdout, seed=0)
    assert known.trained_images(fraction, holdout) == (exact, exact, exact)


def test_elsewhere_it_is_the_mean_over_seeds() -> None:
    known = facts(*[2] * 20, *[7] * 20)
    mean = np.mean([trained(known, 1.0, 0.6, seed) for seed in range(300)])
    # A class varies by less than one image, so that the mean of 300 sums of 40 lies within 0.2 of it.
    assert known.trained_images(1.0, 0.6).expected == pytest.approx(mean, abs=0.7)


def test_classes_of_unknown_size_count_as_equally_large() -> None:
    unknown = DatasetFacts(
        num_samples=7, num_classes=3, image_size=32, in_chans=1, synthetic=False, mirrored=False, teacher=None
    )
    assert unknown.trained_images(1.0, 0.5) == facts(3, 2, 2).trained_images(1.0, 0.5)


def test_a_small_fraction_keeps_an_image_of_each_class_and_can_be_trained_on() -> None:
    spec = resolve(facts(*[4] * 10), fraction=0.01, batch_size=10)
    assert spec.batch_size == 10
    with pytest.raises(InvalidInput, match="only 10 images are trained on"):
        resolve(facts(*[4] * 10), fraction=0.01, batch_size=11)


@pytest.mark.parametrize("holdout", [0.05, 0.5, 0.99])
def test_the_default_batch_fits_what_the_holdout_leaves(holdout: float) -> None:
    known = facts(*[200] * 10)
    spec = resolve(known, holdout=holdout)
    assert spec.batch_size * 8 <= known.trained_images(1.0, holdout).expected


@settings(max_examples=100)
@given(
    counts=st.lists(st.integers(1, 30), min_size=2, max_size=8),
    processes=st.integers(1, 12),
    parts=st.integers(1, 3),
    batch=st.none() | st.integers(1, 12),
    fraction=st.none() | st.floats(0.1, 1.0),
    holdout=st.none() | st.floats(0.0, 0.9),
    seed=st.integers(0, 2**31),
)
def test_each_process_gets_an_image_of_every_batch_that_is_accepted(
    counts: list[int],
    processes: int,
    parts: int,
    batch: int | None,
    fraction: float | None,
    holdout: float | None,
    seed: int,
) -> None:
    asked = {
        "processes": processes,
        "grad_accum_steps": parts,
        "batch_size": None if batch is None else batch * processes * parts,
        "fraction": fraction,
        "holdout": holdout,
    }
    posted = {name: value for name, value in asked.items() if value is not None}
    known = facts(*counts)
    refused: set[str] = set()
    try:
        spec = resolve(known, **posted)
    except InvalidInput as error:
        refused = {e.pointer.removeprefix("/") for e in error.errors}
    if refused:
        assert len(refused) == 1
        assert refused == {"batch_size"} if batch is not None else refused < set(posted)
        assert processes * parts > 1 or batch is not None
        return
    images = trained(known, spec.fraction, spec.holdout, seed)
    sizes = [len(part) for part in np.array_split(np.arange(images), -(-images // spec.batch_size))]
    assert min(sizes) >= processes or images == 0


@pytest.mark.parametrize(
    ("counts", "processes", "batch"),
    [
        ([4] * 10, 8, 16),  # batches of 8 would leave some with 7
        ([1] * 8, 8, 8),  # all of them in one batch, whatever the seed
        ([200] * 10, 8, 32),
    ],
)
def test_the_default_batch_is_one_that_the_processes_can_share(counts: list[int], processes: int, batch: int) -> None:
    assert resolve(facts(*counts), processes=processes).batch_size == batch


@pytest.mark.parametrize(
    ("posted", "pointer"),
    [
        ({"processes": 64}, "/processes"),
        ({"grad_accum_steps": 64}, "/grad_accum_steps"),
        ({"processes": 8, "holdout": 0.9}, "/holdout"),
        ({"processes": 8, "fraction": 0.1}, "/fraction"),
        ({"processes": 8, "holdout": 0.05, "fraction": 0.1}, "/fraction"),
        ({"processes": 8, "batch_size": 8}, "/batch_size"),
        ({"processes": 8, "batch_size": 48, "holdout": 0.5}, "/batch_size"),
    ],
)
def test_what_was_asked_for_is_what_is_refused(posted: dict[str, object], pointer: str) -> None:
    with pytest.raises(InvalidInput) as error:
        resolve(facts(*[4] * 10), **posted)
    assert [e.pointer for e in error.value.errors] == [pointer]


def test_a_filled_in_spec_resolves_to_itself() -> None:
    spec = resolve(FACTS, processes=8, holdout=0.2)
    assert TrainingSpec.resolve(spec.model_dump(mode="json"), FACTS, TEACHER) == spec
