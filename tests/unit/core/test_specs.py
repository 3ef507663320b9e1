"""Specs at the door: what a preset or recipe fills in, what wins, and what is refused, with which pointer."""

import math
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dearkd.errors import InvalidInput
from dearkd.specs import DatasetFacts, Limits, SynthesisSpec, TeacherSpec, TrainingSpec
from tests.support.specs import FACTS, TEACHER, synthesis_spec, training_spec


def teacher(image_size: int, in_chans: int, num_classes: int = 10) -> TeacherSpec:
    return TeacherSpec.check(
        {
            "name": "t",
            "architecture": "resnet10t",
            "num_classes": num_classes,
            "in_chans": in_chans,
            "image_size": image_size,
            "mean": [0.5] * in_chans,
            "std": [0.5] * in_chans,
        }
    )


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("image_size", [8, 32, 64, 96, 224])
@pytest.mark.parametrize("num_classes", [2, 7, 10, 1000])
def test_only_the_teacher_is_required(image_size: int, in_chans: int, num_classes: int) -> None:
    spec = SynthesisSpec.resolve({"teacher": "t"}, teacher(image_size, in_chans, num_classes))
    assert spec.preset == "auto"
    assert spec.classes == list(range(num_classes))
    assert sum(spec.shard_lengths()) == spec.num_samples == spec.images_per_class * num_classes


@given(
    per_class=st.integers(1, 40),
    batch=st.none() | st.integers(1, 64),
    groups=st.none() | st.integers(1, 10),
    shard=st.none() | st.integers(1, 500),
    classes=st.none() | st.lists(st.integers(0, 9), min_size=1, unique=True),
)
def test_a_spec_resolves_to_itself_and_its_defaults_fit_each_other(
    per_class: int, batch: int | None, groups: int | None, shard: int | None, classes: list[int] | None
) -> None:
    asked = {
        "images_per_class": per_class,
        "batch_size": batch,
        "classes_per_batch": groups,
        "shard_samples": shard,
        "classes": classes,
    }
    body = {"teacher": "t"} | {name: value for name, value in asked.items() if value is not None}
    refused: set[str] = set()
    try:
        spec = SynthesisSpec.resolve(body, TEACHER)
    except InvalidInput as error:
        refused = {e.pointer for e in error.errors}
    if refused:
        # Only what was asked for can be wrong: a batch that its own classes_per_batch does not divide, and the like.
        assert refused <= {f"/{name}" for name in body}
        assert batch is not None or groups is not None
        return
    assert SynthesisSpec.resolve(spec.model_dump(mode="json"), TEACHER) == spec
    assert spec.batch_size % spec.classes_per_batch == 0
    for name, value in body.items():
        assert getattr(spec, name) == value
    assert spec.weights.boundary == 0 or per_class > 1


def test_a_teacher_that_cannot_take_half_its_size_is_shown_all_of_it() -> None:
    fixed = teacher(224, 3)
    posted = {"teacher": "t", "preset": "published-imagenet"}
    spec = SynthesisSpec.resolve(posted, fixed, refused_input_sizes=[112])
    assert [(p.resolution, p.input_size) for p in spec.phases] == [(112, 224), (224, 224)]
    assert SynthesisSpec.resolve(spec.model_dump(mode="json"), fixed, refused_input_sizes=[112]) == spec
    asked = {
        "teacher": "t",
        "phases": [{"resolution": 56, "iterations": 1}, *({"resolution": 112, "input_size": 112, "iterations": 1},)],
    }
    assert [p.input_size for p in SynthesisSpec.resolve(asked, fixed).phases] == [224, 112]
    with pytest.raises(InvalidInput, match="it is shown 224") as caught:
        SynthesisSpec.resolve(asked, fixed, refused_input_sizes=[112])
    assert [error.pointer for error in caught.value.errors] == ["/phases/1/input_size"]


@pytest.mark.parametrize(
    ("earlier", "preset"), [("imagenet", "published-imagenet"), ("cifar", "published-cifar"), ("digits", "auto")]
)
def test_presets_are_found_by_their_earlier_names(earlier: str, preset: str) -> None:
    assert synthesis_spec(preset=earlier) == synthesis_spec(preset=preset)
    stored = synthesis_spec().model_dump(mode="json") | {"preset": earlier}
    assert SynthesisSpec.check(stored).preset == preset


@pytest.mark.parametrize("image_size", [28, 32, 64, 96, 224, 299])
@pytest.mark.parametrize("in_chans", [1, 3])
def test_one_rule_serves_every_teacher(image_size: int, in_chans: int) -> None:
    spec = SynthesisSpec.resolve({"teacher": "t", "generator": None}, teacher(image_size, in_chans))
    finer = (image_size // 2) / 16
    large = image_size >= 64
    assert spec.weights.total_variation_l1 == pytest.approx((0.7 if large else 0.3) * finer, abs=1e-4)
    assert spec.weights.batch_norm == 10.0
    assert spec.learning_rate == pytest.approx(0.8 / math.sqrt(finer), abs=1e-4)
    assert spec.weights.boundary == 1.0
    same = {"total_variation_l1": 0.0, "batch_norm": 0.0, "boundary": 0.0}
    assert spec.weights.model_copy(update=same) == synthesis_spec().weights.model_copy(update=same)
    assert spec.statistics == "root_gaussian"
    (phase,) = spec.phases
    assert (phase.resolution, phase.input_size) == (image_size // 2, image_size)
    assert phase.iterations / 5 <= spec.unlabelled_iterations <= phase.iterations / 4
    assert (spec.crop_min_scale < 1) == (image_size >= 64)


@pytest.mark.parametrize("preset", ["auto", "draft"])
@pytest.mark.parametrize("num_classes", [2, 7, 26, 51, 1000])
@pytest.mark.parametrize("image_size", [8, 28, 63, 64, 224])
def test_a_generator_makes_small_images_in_batches_of_all_classes_or_fifty(
    image_size: int, num_classes: int, preset: str
) -> None:
    of = teacher(image_size, 3, num_classes)
    spec = SynthesisSpec.resolve({"teacher": "t", "preset": preset}, of)
    assert (spec.generator is not None) == (image_size < 64)
    assert spec.weights.boundary == (3.0 if image_size < 64 and preset == "auto" else 1.0)
    assert spec.preset == preset
    assert SynthesisSpec.resolve(spec.model_dump(mode="json"), of) == spec
    if spec.generator is not None:
        assert spec.classes_per_batch == min(num_classes, 50)
        assert 2 * spec.classes_per_batch <= spec.batch_size
        assert 20 < spec.batch_size <= max(30, 2 * spec.classes_per_batch)
        assert (spec.phases[0].resolution, spec.phases[0].input_size) == (image_size, image_size)
        assert (spec.init, spec.init_std, spec.pyramid_levels) == ("noise", 1.0, 1)


@pytest.mark.parametrize("preset", ["auto", "draft"])
@pytest.mark.parametrize(
    "asked",
    [
        {"generator": None},
        {"init": "earlier_batch"},
        {"init_std": 0.3},
        {"pyramid_levels": 3},
        {"clip": False},
        {"learning_rate": 0.1},
        {"phases": [{"resolution": 8, "iterations": 20}, {"resolution": 16, "iterations": 20}]},
    ],
)
def test_what_is_of_pixels_turns_the_generator_off_where_none_is_asked_for(asked: dict[str, Any], preset: str) -> None:
    spec = SynthesisSpec.resolve({"teacher": "t", "preset": preset} | asked, teacher(32, 3))
    assert spec.generator is None
    assert spec.classes_per_batch == 10
    assert spec.weights.boundary == 1.0
    with pytest.raises(InvalidInput, match="set generator to null"):
        SynthesisSpec.resolve(
            {"teacher": "t", "preset": preset} | asked | {"generator": {}, "init_std": 0.3}, teacher(32, 3)
        )


def test_a_whole_spec_of_before_there_were_generators_has_none() -> None:
    of = teacher(32, 1)
    whole = SynthesisSpec.resolve({"teacher": "t", "generator": None}, of).model_dump(mode="json")
    assert whole.pop("generator") is None
    assert SynthesisSpec.resolve(whole, of).generator is None


def test_explicit_fields_win_one_by_one() -> None:
    spec = synthesis_spec(
        weights={"boundary": 0.25}, preset="published-cifar", phases=[{"resolution": 8, "iterations": 3}]
    )
    assert spec.weights.boundary == 0.25
    assert spec.weights.total_variation_l2 == 3.5e-4  # the preset's own
    assert [(p.resolution, p.input_size, p.iterations) for p in spec.phases] == [(8, 32, 3)]


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"colour": 1}, "/colour"),
        ({"weights": {"bondary": 1}}, "/weights/bondary"),
        ({"images_per_class": 0}, "/images_per_class"),
        ({"images_per_class": "20"}, "/images_per_class"),
        ({"images_per_class": True}, "/images_per_class"),
        ({"images_per_class": 10**9}, "/images_per_class"),
        ({"classes": [10]}, "/classes/0"),
        ({"classes": [-1]}, "/classes/0"),
        ({"classes": [1, 1]}, "/classes"),
        ({"classes": []}, "/classes"),
        ({"preset": "mnist"}, "/preset"),
        ({"precision": "float16"}, "/precision"),
        ({"seed": -1}, "/seed"),
        ({"learning_rate": float("nan")}, "/learning_rate"),
        ({"phases": []}, "/phases"),
        ({"phases": [{"resolution": 64, "iterations": 1}]}, "/phases/0/resolution"),
        ({"phases": [{"resolution": 16, "iterations": 1}, {"resolution": 8, "iterations": 1}]}, "/phases/1/resolution"),
        ({"phases": [{"resolution": 8, "iterations": 10**9}]}, "/phases"),
        ({"batch_size": 15, "classes_per_batch": 10}, "/batch_size"),
        ({"images_per_class": 1, "weights": {"boundary": 1.0}}, "/weights/boundary"),
        ({"batch_size": 10, "classes_per_batch": 10, "weights": {"boundary": 0.1}}, "/weights/boundary"),
        ({"shard_samples": 10, "classes_per_batch": 10, "weights": {"boundary": 0.1}}, "/weights/boundary"),
        ({"images_per_class": 41, "shard_samples": 400, "weights": {"boundary": 0.1}}, "/weights/boundary"),
        ({"shard_samples": 10**8}, "/shard_samples"),
        ({"jitter": 32}, "/jitter"),
        ({"batch_norm_layer_weights": [0.0, 0.0]}, "/batch_norm_layer_weights"),
        ({"batch_norm_layer_weights": [1.0, 0.0], "first_batch_norm_weight": 0.0}, "/batch_norm_layer_weights"),
        ({"batch_norm_layer_weights": []}, "/batch_norm_layer_weights"),
        ({"batch_norm_layer_weights": [1.0, -1.0]}, "/batch_norm_layer_weights/1"),
        ({"adaptive_student": "mdl-x"}, "/adaptive_student"),
    ],
)
def test_what_a_synthesis_spec_refuses(fields: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidInput) as error:
        SynthesisSpec.resolve({"teacher": "t", **fields}, TEACHER, Limits())
    assert pointer in {e.pointer for e in error.value.errors}


def test_a_shard_is_at_most_what_one_request_may_create() -> None:
    """5 GiB; a grey sample of 32×32 pixels takes three headers, a block each for label and JSON, and four for an image
    of noise: PNG, WebP and JPEG make 1124, 1086 and 1369 bytes of one."""
    most = 5 * 2**30 // (9 * 512)
    assert synthesis_spec(shard_samples=most, images_per_class=1).shard_samples == most
    with pytest.raises(InvalidInput, match=f"{most} samples fit"):
        synthesis_spec(shard_samples=most + 1)


def test_a_job_has_not_more_shards_than_the_server_allows() -> None:
    """Each is a unit in Redis: a million of them is more than it takes in one command."""
    posted = {"teacher": "t", "images_per_class": 20, "shard_samples": 10}
    assert SynthesisSpec.resolve(posted, TEACHER, Limits(max_shards=20)).num_shards == 20
    with pytest.raises(InvalidInput, match="set it to at least 11") as caught:
        SynthesisSpec.resolve(posted, TEACHER, Limits(max_shards=19))
    assert [error.pointer for error in caught.value.errors] == ["/shard_samples"]
    with pytest.raises(InvalidInput, match="1000000 shards"):
        SynthesisSpec.resolve(posted | {"images_per_class": 10**5, "shard_samples": 1}, TEACHER)
    most = SynthesisSpec.resolve({"teacher": "t", "images_per_class": 10**6 - 3}, TEACHER)
    assert most.num_shards < Limits().max_shards


@pytest.mark.parametrize(
    ("image_size", "in_chans", "posted", "shard"),
    [
        (32, 1, {}, 1000),
        (32, 1, {"generator": None}, 400),
        (32, 3, {"generator": None}, 400),
        (224, 3, {}, 500),  # a group of 10 × 50
        (224, 3, {"images_per_class": 20}, 400),  # two groups
        (224, 3, {"images_per_class": 100}, 500),  # half a group
        (224, 3, {"images_per_class": 60}, 300),
        (32, 1, {"images_per_class": 201, "generator": None}, 370),  # 400 would leave a last shard of 10
        (
            32,
            1,
            {"images_per_class": 100_001, "generator": None},
            360,
        ),  # 400 would leave ten images of each group's million
        (32, 1, {"images_per_class": 1}, 1000),
        (32, 1, {"images_per_class": 300, "batch_size": 1000, "generator": None}, 1000),
    ],
)
def test_default_shards_hold_whole_groups_or_even_shares_of_one(
    image_size: int, in_chans: int, posted: dict[str, Any], shard: int
) -> None:
    spec = SynthesisSpec.resolve({"teacher": "t"} | posted, teacher(image_size, in_chans))
    assert spec.shard_samples == shard


def test_only_the_dataset_is_required_of_a_training_spec() -> None:
    spec = training_spec("ds")
    assert (spec.recipe, spec.student.image_size, spec.student.patch_size) == ("small", 32, 4)
    assert spec.teacher == FACTS.teacher
    assert spec.stage_one.distillation == "soft"
    assert spec.augmentation.hflip == 0.0
    assert TrainingSpec.resolve(spec.model_dump(mode="json"), FACTS, TEACHER) == spec


@pytest.mark.parametrize("image_size", [8, 28, 32, 64, 96, 224, 37])
def test_a_default_patch_gives_64_tokens_or_more(image_size: int) -> None:
    student = training_spec("ds", student={"image_size": image_size}).student
    assert student.image_size % student.patch_size == 0
    assert (student.image_size // student.patch_size) ** 2 >= 64


def test_real_data_are_distilled_softly_too_and_large_ones_by_deits_recipe() -> None:
    facts = DatasetFacts(
        num_samples=100_000, num_classes=10, image_size=224, in_chans=3, synthetic=False, mirrored=True, teacher=None
    )
    spec = TrainingSpec.resolve({"dataset": "ds", "teacher": "t"}, facts, teacher(224, 3))
    assert (spec.recipe, spec.stage_one.distillation) == ("deit", "soft")
    assert spec.optimizer.lr == pytest.approx(5e-4 * spec.batch_size / 512)
    assert (spec.stage_one.epochs, spec.stage_two.epochs) == (250, 50)


def test_the_recipes_own_schedules_are_as_published_and_measured() -> None:
    facts = DatasetFacts(
        num_samples=100_000, num_classes=10, image_size=224, in_chans=3, synthetic=False, mirrored=True, teacher=None
    )
    deit = TrainingSpec.resolve({"dataset": "ds", "teacher": "t"}, facts, teacher(224, 3)).optimizer
    small = training_spec("ds").optimizer
    assert (deit.warmup_epochs, deit.warmup_lr, deit.min_lr) == (5, 1e-6, 1e-5)
    assert (small.warmup_epochs, small.warmup_lr, small.min_lr) == (3, 1e-6, 1e-5)


@pytest.mark.parametrize(
    ("images", "epochs"), [(1, 300), (600, 300), (640, 300), (2000, 96), (3000, 64), (5400, 36), (100_000, 36)]
)
def test_few_images_are_seen_more_often(images: int, epochs: int) -> None:
    facts = DatasetFacts(
        num_samples=images, num_classes=10, image_size=32, in_chans=1, synthetic=True, mirrored=False, teacher=None
    )
    spec = TrainingSpec.resolve({"dataset": "ds", "teacher": "t"}, facts, teacher(32, 1))
    assert (spec.recipe, spec.epochs) == ("small", epochs)
    assert spec.stage_two.epochs == round(epochs / 12)
    own = TrainingSpec.resolve({"dataset": "ds", "teacher": "t", "stage_one": {"epochs": 5}}, facts, teacher(32, 1))
    assert own.stage_one.epochs == 5


@given(
    recipe=st.sampled_from(["deit", "small"]),
    one=st.integers(0, 7),
    two=st.integers(0, 7),
    schedule=st.sampled_from(["continues", "restarts"]),
    batch=st.integers(1, 64),
    rate=st.none() | st.floats(1e-9, 1e-1),
    second=st.none() | st.floats(1e-9, 1e-1),
)
def test_the_default_schedule_fits_every_run(
    recipe: str, one: int, two: int, schedule: str, batch: int, rate: float | None, second: float | None
) -> None:
    assume(one + two > 0)
    restarts = schedule == "restarts" and one > 0 and two > 0
    spec = training_spec(
        "ds",
        recipe=recipe,
        batch_size=batch,
        stage_one={"epochs": one},
        stage_two={"epochs": two, "schedule": schedule} | ({"lr": second} if restarts and second else {}),
        optimizer={"lr": rate} if rate else {},
    )
    optimizer = spec.optimizer
    assert optimizer.warmup_epochs < (one if restarts else one + two)
    assert max(optimizer.min_lr, optimizer.warmup_lr) < min(optimizer.lr, spec.stage_two.lr or 1.0)


def test_without_a_teacher_nothing_may_be_distilled() -> None:
    facts = DatasetFacts(
        num_samples=500, num_classes=10, image_size=32, in_chans=1, synthetic=False, mirrored=False, teacher=None
    )
    with pytest.raises(InvalidInput) as error:
        TrainingSpec.resolve({"dataset": "ds"}, facts, None)
    assert error.value.errors[0].pointer == "/teacher"
    plain = {"distillation": "none", "weights": {"hidden": 0.0}}
    spec = TrainingSpec.resolve({"dataset": "ds", "stage_one": plain}, facts, None)
    assert not spec.needs_teacher
    assert spec.stage_one.weights.classification == 1.0


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"epochs": 3}, "/epochs"),
        ({"recipe": "large"}, "/recipe"),
        ({"student": {"architecture": "resnet50"}}, "/student/architecture"),
        ({"student": {"image_size": 32, "patch_size": 5}}, "/student/patch_size"),
        ({"student": {"image_size": 227}}, "/student/image_size"),
        ({"student": {"num_heads": 7}}, "/student/num_heads"),
        ({"student": {"mhca_blocks": 9}}, "/student/mhca_blocks"),
        ({"student": {"depth": 10**6}}, "/student/depth"),
        ({"student": {"embed_dim": 10**6, "num_heads": 10}}, "/student/embed_dim"),
        ({"student": {"num_heads": 10**6}}, "/student/num_heads"),
        ({"student": {"image_size": 2048, "patch_size": 8}}, "/student/patch_size"),
        ({"stage_one": {"distillation": "loud"}}, "/stage_one/distillation"),
        ({"stage_two": {"distillation": "soft"}}, "/stage_two/distillation"),
        ({"stage_one": {"epochs": 0}, "stage_two": {"epochs": 0}}, "/stage_one/epochs"),
        ({"fraction": 0.0}, "/fraction"),
        ({"fraction": 1.5}, "/fraction"),
        ({"batch_size": 5000}, "/batch_size"),
        ({"batch_size": 33, "processes": 2}, "/batch_size"),
        ({"batch_size": 34, "processes": 2, "grad_accum_steps": 2}, "/batch_size"),
        ({"stage_one": {"pairs": [{"block": 0, "stage": 1}, {"block": 9, "stage": 2}]}}, "/stage_one/pairs/1/block"),
        ({"stage_one": {"pairs": []}}, "/stage_one/pairs"),
        ({"stage_two": {"lr": 1e-3}}, "/stage_two/lr"),
        ({"stage_one": {"epochs": 0}, "stage_two": {"lr": 1e-3, "schedule": "restarts"}}, "/stage_two/lr"),
        ({"stage_two": {"epochs": 0, "lr": 1e-3, "schedule": "restarts"}}, "/stage_two/lr"),
        ({"stage_two": {"lr": 1e-5, "schedule": "restarts"}, "optimizer": {"min_lr": 1e-4}}, "/stage_two/lr"),
        ({"optimizer": {"warmup_epochs": 96}}, "/optimizer/warmup_epochs"),
        ({"optimizer": {"warmup_epochs": 88}, "stage_two": {"schedule": "restarts"}}, "/optimizer/warmup_epochs"),
        ({"optimizer": {"min_lr": 2e-3, "lr": 1e-3}}, "/optimizer/min_lr"),
        ({"optimizer": {"warmup_lr": 2e-3, "lr": 1e-3}}, "/optimizer/warmup_lr"),
        ({"stage_two": {"schedule": "stops"}}, "/stage_two/schedule"),
        ({"optimizer": {"layer_decay": 1.5}}, "/optimizer/layer_decay"),
        ({"optimizer": {"lr": -1.0}}, "/optimizer/lr"),
        ({"augmentation": {"scale": [0.5, 0.2]}}, "/augmentation/scale"),
        ({"engine": "slurm"}, "/engine"),
        ({"holdout": 1.0}, "/holdout"),
    ],
)
def test_what_a_training_spec_refuses(fields: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidInput) as error:
        training_spec("ds", **fields)
    assert pointer in {e.pointer for e in error.value.errors}


@pytest.mark.parametrize(
    "notation",
    [
        *("nonsense", "", "random-m9", "rand-m9-x5", "rand-m9.5", "rand-m", "rand-inc", "rand--m9", "rand-m9-", "v1"),
        *("rand-mstdinf", "rand-p1.5", "rand-n0", "rand-m-1", "rand-tnone", "rand-n15-tweights", "rand-m1000"),
        *("augmix-n2", "augmix-w0", "augmix-a0.01", "v0-m9", "original-inc1", "rand-m٩", "rand-m9" + 100 * "-m9"),
    ],
)
def test_an_augmentation_that_timm_does_not_know_is_refused(notation: str) -> None:
    with pytest.raises(InvalidInput) as error:
        training_spec("ds", augmentation={"aa": notation})
    assert [e.pointer for e in error.value.errors] == ["/augmentation/aa"]


@pytest.mark.parametrize(
    "notation", [None, "rand", "rand-m9-mstd0.5-inc1", "rand-m7-n3-p0.25-mmax30-tweights", "augmix-m5-w4-d2", "v0r"]
)
def test_timms_notation_is_kept_as_it_came(notation: str | None) -> None:
    assert training_spec("ds", augmentation={"aa": notation}).augmentation.aa == notation


def test_a_server_without_a_ray_cluster_says_so_by_code_and_names_the_setting() -> None:
    with pytest.raises(InvalidInput, match="no Ray cluster: use local, or name one by DEARKD_RAY_ADDRESS") as error:
        training_spec("ds", engine="ray")
    assert (error.value.code, [e.pointer for e in error.value.errors]) == ("engine_unavailable", ["/engine"])
    spec = TrainingSpec.resolve({"dataset": "ds", "engine": "ray"}, FACTS, TEACHER, on_ray=True)
    assert spec == training_spec("ds").model_copy(update={"engine": "ray"})


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"mean": [0.5, 0.5]}, "/mean"),
        ({"mean": [77.9]}, "/mean"),
        ({"std": [82.5]}, "/std"),
        ({"std": [1e-30]}, "/std"),
        ({"std": [0.0]}, "/std/0"),
        ({"class_names": ["a"]}, "/class_names"),
        ({"in_chans": 2}, "/in_chans"),
        ({"num_classes": 1}, "/num_classes"),
        ({"model_args": {"pretrained": True}}, "/model_args"),
        ({"model_args": {"act_layer": "gelu"}}, "/model_args/act_layer"),
        ({"architecture": "../x"}, "/architecture"),
        ({"licence": "MIT"}, "/licence"),
    ],
)
def test_what_a_teacher_spec_refuses(fields: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidInput) as error:
        TeacherSpec.check({**TEACHER.model_dump(mode="json"), **fields})
    assert any(e.pointer == pointer or e.pointer.startswith(f"{pointer}/") for e in error.value.errors)
