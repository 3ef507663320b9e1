"""The request for a synthesis job, with almost everything left out, and the spec that it becomes with a teacher."""

from collections.abc import Collection, Mapping
from typing import Annotated, Any

from pydantic import Field

from dearkd.errors import InvalidInput
from dearkd.specs.base import FIRST_ERROR, Limits, Spec, fields_of, overlay
from dearkd.specs.budget import BudgetSpec, planned_images, settings_within
from dearkd.specs.cuts import MAX_SHARD_BYTES, default_shard_samples, sample_bytes
from dearkd.specs.presets import OF_PIXELS, PRESETS
from dearkd.specs.synthesis import Phase, Preset, SynthesisSpec
from dearkd.specs.synthesis_rules import check_synthesis
from dearkd.specs.teacher import TeacherSpec
from dearkd.specs.webhook import WebhookRequest

MOST_ROUNDS = 1000
"""Rounds into which the images of a budget of time are cut at the most [R]."""
CHAINED_IMAGES, CHAINED_BATCHES, CHAINED_RATE = 5, 20, 0.375
"""Images of a class in a batch, batches in a shard, and the factor on the learning rate, where batches begin from
earlier ones [R]: many small batches, since the first of a shard begins from noise, and images that are nearly there
would be lost at the rate that noise needs."""

ROUND_IMAGES = 200
"""The images that a round has at least, about, where batches go on with one generator [R]: rounds of its small batches
would end a shard, and so begin a new generator, before the first has got far."""


@fields_of(Phase, required={"resolution", "iterations"}, nullable={"input_size"})
class PhaseRequest(Spec):
    """One resolution of the optimisation; `input_size` is by default the teacher's `image_size`."""


@fields_of(SynthesisSpec, nullable={"classes"})
class SynthesisRequest(Spec):
    """A synthesis job as it is asked for. Only `teacher` is required; the preset says the rest."""

    teacher: str
    """The teacher's id."""
    preset: Preset | None = None
    """The preset; None: `auto`."""
    adaptive_student: str | None = None
    """Id of the model that the adaptive term competes with; by default a small CNN is trained for it on the way."""
    webhook: WebhookRequest | None = None
    """Whom the job tells of its steps."""
    budget: BudgetSpec | None = None
    """The most that the job may cost, in place of `phases`: images, iterations and rounds follow from it."""
    phases: Annotated[list[PhaseRequest], FIRST_ERROR] = Field(default_factory=list, min_length=1, max_length=16)

    def complete(
        self, teacher: TeacherSpec, limits: Limits | None = None, *, refused_input_sizes: Collection[int] = ()
    ) -> SynthesisSpec:
        """The spec of the preset, over it what is given, and defaults that fit to what is given.

        Args:
            teacher: whose images are to be made.
            limits: the operator's.
            refused_input_sizes: sides of images that the teacher is known not to take.

        Raises:
            InvalidInput: with a pointer for every rule that the fields break together, or with the teacher.
        """
        limits = limits or Limits()
        asked = self.model_dump(exclude_unset=True)
        given = {name: value for name, value in asked.items() if value is not None or name not in ("preset", "classes")}
        name = self.preset or "auto"
        preset = (OF_PIXELS if _asks_for_pixels(given) else {}).get(name, PRESETS[name])(teacher).model_dump()
        preset["preset"] = name
        for phase in preset["phases"]:
            if phase["input_size"] in refused_input_sizes:
                phase["input_size"] = teacher.image_size
        for phase in given.get("phases", []):
            phase["input_size"] = phase.get("input_size") or teacher.image_size
        within = {} if self.budget is None else _within(self.budget, preset, given, limits)
        spec = SynthesisSpec.check(overlay(preset | within, given))
        spec = _fit(spec, given, teacher, preset, limits)
        check_synthesis(spec, teacher, limits, refused_input_sizes)
        return spec


def _asks_for_pixels(given: Mapping[str, Any]) -> bool:
    """Tell whether a request is of images without a generator, where it does not ask for one.

    It says null, has a setting that is of pixels, or is a complete spec of the time before generators.
    """
    if "generator" in given:
        return given["generator"] is None
    settings = ("init", "init_std", "pyramid_levels", "clip")
    usual = {name: SynthesisSpec.model_fields[name].default for name in settings}
    changed = any(given.get(name, default) != default for name, default in usual.items())
    return changed or "learning_rate" in given or len(given.get("phases", ())) > 1 or _is_complete(given)


def _is_complete(given: Mapping[str, Any]) -> bool:
    """Tell whether this is a whole spec, as a dry run answers it."""
    return all(name in given for name, field in SynthesisSpec.model_fields.items() if field.is_required())


def _within(budget: BudgetSpec, preset: Mapping[str, Any], given: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """Find those settings of a preset that a budget changes.

    Raises:
        InvalidInput: at `/budget`, beside iterations of one's own; a complete spec has both.
    """
    if _is_complete(given):
        return {}
    if "phases" in given:
        raise InvalidInput.at(
            "/budget",
            "it chooses the iterations, and phases says them too: leave out phases, or leave out the budget and say "
            "images_per_class",
        )
    if budget.teacher_passes is None:
        return {}
    return settings_within(budget.teacher_passes, preset, given, limits)


def _fit(
    spec: SynthesisSpec, given: Mapping[str, Any], teacher: TeacherSpec, preset: Mapping[str, Any], limits: Limits
) -> SynthesisSpec:
    """Bend those defaults that were not asked for to those fields that were, so that every default works.

    Args:
        spec: the preset's, with what was asked for.
        given: what was asked for.
        teacher: whose images are made.
        preset: the spec of the preset.
        limits: the operator's.

    Raises:
        InvalidInput: if there are more rounds than images of a class.
    """
    batch, groups, classes = spec.batch_size, spec.classes_per_batch, len(spec.classes)
    if "classes_per_batch" not in given:
        groups = max(
            p for p in range(1, min(groups, classes, batch) + 1) if batch % p == 0 or "batch_size" not in given
        )
    goes_on = spec.init == "earlier_batch"
    if "batch_size" not in given:
        each, most = batch // groups, spec.images_per_class
        if goes_on:
            each, most = min(each, CHAINED_IMAGES), most // 2
        batch = groups * max(1, min(each, most))
    if goes_on and "learning_rate" not in given:
        spec = spec.model_copy(update={"learning_rate": round(CHAINED_RATE * spec.learning_rate, 4)})
    spec = spec.model_copy(update={"batch_size": batch, "classes_per_batch": groups})
    if spec.budget is not None:
        full = preset["batch_size"] if spec.generator is None else ROUND_IMAGES
        share = full // preset["classes_per_batch"]  # images of each class
        spec = spec.model_copy(update=_rounds(spec, given, max(share, batch // groups), limits))
    if spec.rounds > spec.images_per_class:  # before the arithmetic, which cannot cut into rounds of nothing
        raise InvalidInput.at(
            "/rounds",
            f"{spec.rounds}, but each makes an image of each class, and images_per_class is {spec.images_per_class}: "
            "set at most that",
        )
    spec = spec.model_copy(update=_shards(spec, given, teacher))
    changed: dict[str, Any] = {}
    if "boundary" not in given.get("weights", ()) and spec.has_lone_batch():
        changed["weights"] = spec.weights.model_copy(
            update={"boundary": 0.0}
        )  # it would be refused if it were asked for
    steps = sum(phase.iterations for phase in spec.phases)
    if "jitter" not in given:
        changed["jitter"] = min(spec.jitter, *(phase.input_size - 1 for phase in spec.phases))
    if "warmup_iterations" not in given:
        changed["warmup_iterations"] = min(spec.warmup_iterations, steps // 10)
    if "unlabelled_iterations" not in given:
        whole = sum(phase["iterations"] for phase in preset["phases"])
        most = steps * max(0.25, preset["unlabelled_iterations"] / whole)
        changed["unlabelled_iterations"] = min(spec.unlabelled_iterations, int(most)) if spec.weights.batch_norm else 0
    return spec.model_copy(update=changed)


def _rounds(spec: SynthesisSpec, given: Mapping[str, Any], share: int, limits: Limits) -> dict[str, int]:
    """Cut a budget's images into rounds of a full batch of each class group, as small as batches allow [R].

    So a job ends close to its time, and forecasts come early; a thousandth of all images is close enough. For minutes
    more images are planned than may fit. A job that trains a student on some of all shards has one round.
    """
    assert spec.budget is not None
    images = spec.images_per_class
    if spec.weights.adaptive > 0 and spec.adaptive_student is None and spec.budget.minutes is None:
        return {}
    if spec.budget.minutes is not None and "images_per_class" not in given:
        images = planned_images(images, share, len(spec.classes), limits)
    return {"images_per_class": images, "rounds": given.get("rounds", min(MOST_ROUNDS, max(1, images // share)))}


def _shards(spec: SynthesisSpec, given: Mapping[str, Any], teacher: TeacherSpec) -> dict[str, int]:
    """Choose the shards' size; if a student is trained on some, others are left for it to compete in [R]."""
    shard, samples = spec.shard_samples, spec.num_samples
    fits = max(1, MAX_SHARD_BYTES // sample_bytes(teacher, logits=spec.store_logits))
    trains = spec.weights.adaptive > 0 and spec.adaptive_student is None
    if "shard_samples" not in given:
        images = max(spec.cut_in_rounds.sizes())
        cut = spec.cut() | {"images_per_class": images}
        least = CHAINED_BATCHES * spec.batch_size if spec.init == "earlier_batch" else spec.batch_size
        shard = default_shard_samples(min(max(shard, least), fits), fits, **cut)
        if spec.rounds > 1:
            shard = min(shard, images * len(spec.classes))
        if trains and shard >= samples:
            half, groups = (samples + 1) // 2, spec.cut()["classes_per_batch"]
            whole = -(-half // groups) * groups
            shard = default_shard_samples(whole if whole < samples else half, fits, **spec.cut())
    found = {"shard_samples": shard}
    if trains and spec.adaptive_every is None:
        group = spec.cut()["classes_per_batch"] * spec.images_per_class
        # With one group every shard holds all classes.
        found["adaptive_every"] = 10 if group >= samples else max(2, min(10, group // shard))
    return found
