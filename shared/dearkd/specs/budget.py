"""Budgets of a synthesis job, in place of settings, and the settings that follow from them: arithmetic alone."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from dearkd.errors import InvalidInput
from dearkd.specs.base import Limits, Spec

SHORTEST = 4
"""The divisor of a preset's iterations below which a budget does not go: fewer images are made instead [R]. The whole
schedule scales with them, and labels come after a quarter of it; with half of the iterations many of 200 digits were no
digits any more (benchmarks/LOG.md)."""
LONGEST = 10 * 365 * 24 * 60
"""Minutes of the longest budget, ten years: what is computed from it and shown stays a number."""
PLANNED = 10
"""The multiple of a preset's images that a budget of time plans to make at the most [R]: a plan has an end."""


class BudgetSpec(Spec):
    """A bound of a synthesis job's cost, teacher_passes or minutes, to which the preset's settings bend."""

    teacher_passes: int | None = Field(default=None, ge=1, lt=2**63)
    """Forward and backward passes of single images through the teacher, over the whole job. The number of images
    follows; where that would be few, the iterations too."""
    minutes: float | None = Field(default=None, gt=0, le=LONGEST)
    """Minutes of running, without what it waited or was paused. As many rounds of images are made as fit, but at least
    one."""
    stop_below: float | None = Field(default=None, gt=0, le=100)
    """Percentage points of accuracy: where a forecast expects less than these of all images that are still to be made,
    the job ends early; null: it never does."""

    @property
    def ends_early(self) -> bool:
        """Tell whether it may end a job of several rounds behind any of them."""
        return self.minutes is not None or self.stop_below is not None

    @model_validator(mode="after")
    def _exactly_one(self) -> "BudgetSpec":
        if (self.teacher_passes is None) == (self.minutes is None):
            given = "neither" if self.minutes is None else "both"
            raise ValueError(f"{given} of teacher_passes and minutes: give exactly one of the two")
        return self

    @model_serializer(mode="wrap")
    def _as_posted(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}


class EndedEarly(BaseModel):
    """The reason why a job made fewer images than it planned."""

    model_config = ConfigDict(frozen=True)

    reason: Literal["budget", "no_gain"]
    """`budget`: its time was up; `no_gain`: more images were not expected to pay (`stop_below`)."""
    planned: int
    """Images."""
    made: int
    detail: str
    """The same as a sentence, with the time that it took."""


def settings_within(passes: int, preset: Mapping[str, Any], given: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """The `images_per_class` and `phases` of a job that takes at most so many teacher passes.

    The preset's iterations stay, and as many images are made as fit, while each class gets a full share of a batch
    (`batch_size` / `classes_per_batch` of the preset): statistics are matched batch by batch, and the presets are made
    for such batches. Below that, iterations go down to a quarter, and only then images go below that share [R]. Where
    `images_per_class` is given, the iterations follow: the preset's, or as many as fit.

    Args:
        passes: the budget.
        preset: the complete spec of the preset.
        given: the fields that were asked for.
        limits: the operator's.

    Raises:
        InvalidInput: at `/budget/teacher_passes`, with the least that would do, or the most.
    """
    pointer = "/budget/teacher_passes"
    phases, classes = preset["phases"], len(given.get("classes") or preset["classes"])
    usual = sum(phase["iterations"] for phase in phases)
    least = max(len(phases), usual // SHORTEST)
    images = given.get("images_per_class")
    if passes < least * classes * (images or 1):
        what = "one image" if images is None else f"{images} images"
        fewer = passes // (least * classes)
        remedy = f", or set images_per_class to {fewer}" if fewer and images else ", or fewer classes"
        raise InvalidInput.at(
            pointer,
            f"{passes}, but {what} of each of {classes} classes, in {least} iterations, the fewest that a budget "
            f"chooses here, take {least * classes * (images or 1)}: give at least that{remedy}",
        )
    if images is None:
        share = preset["batch_size"] // preset["classes_per_batch"]
        images = max(passes // (classes * usual), min(share, passes // (classes * least)))
        if images * classes > limits.max_images:
            most = limits.max_images // classes * classes * usual
            raise InvalidInput.at(
                pointer,
                f"{passes} passes are {images * classes} images of {usual} iterations; this server allows "
                f"{limits.max_images}: give at most {most}",
            )
    return {"images_per_class": images, "phases": _shortened(phases, min(usual, passes // (classes * images)))}


def planned_images(preset_images: int, share: int, classes: int, limits: Limits) -> int:
    """The images of each class that a budget of time plans to make, where nobody says how many: whole batches' shares.

    Args:
        preset_images: the preset's, of each class.
        share: images of each class in a full batch.
        classes: number of classes.
        limits: the operator's.
    """
    wanted = -(-PLANNED * preset_images // share) * share
    allowed = limits.max_images // classes
    return wanted if wanted <= allowed else max(1, allowed // share * share or allowed)


def _shortened(phases: Sequence[Mapping[str, Any]], iterations: int) -> list[dict[str, Any]]:
    """The phases with so many iterations in all, each its part of them; the last has what rounding leaves."""
    usual = sum(phase["iterations"] for phase in phases)
    parts = [max(1, phase["iterations"] * iterations // usual) for phase in phases[:-1]]
    parts.append(iterations - sum(parts))
    return [{**phase, "iterations": part} for phase, part in zip(phases, parts, strict=True)]
