"""The learning rate of a training run over its epochs: defaults that fit it, and the values that make no schedule."""

from collections.abc import Mapping
from typing import Any

from dearkd.errors import FieldError


def fitting_schedule(spec: Mapping[str, Any]) -> dict[str, float]:
    """The recipe's `warmup_epochs`, `warmup_lr` and `min_lr`, made smaller where they do not fit the run [R].

    A warm-up that would not end before the first cosine does takes half of it, and a rate that is no smaller than the
    lowest peak is a tenth of that.

    Args:
        spec: the recipe's values with the posted ones over them, not checked yet: where what decides is out of range,
            nothing is made smaller.
    """
    optimizer, one, two = (spec.get(name) for name in ("optimizer", "stage_one", "stage_two"))
    if not (isinstance(optimizer, Mapping) and isinstance(one, Mapping) and isinstance(two, Mapping)):
        return {}
    fitting: dict[str, float] = {}
    epochs = _first_cosine(one.get("epochs"), two.get("epochs"), two.get("schedule"))
    if epochs and _is_over(optimizer["warmup_epochs"], epochs):
        fitting["warmup_epochs"] = epochs / 2
    rates = (optimizer["lr"], two.get("lr"))
    peaks = [rate for rate in rates if isinstance(rate, int | float) and rate > 0]
    if peaks:
        for name in ("warmup_lr", "min_lr"):
            if _is_over(optimizer[name], min(peaks)):
                fitting[name] = min(peaks) / 10
    return fitting


def schedule_refusals(spec: Mapping[str, Any]) -> list[FieldError]:
    """What stands against the schedule of a filled-in training spec, as JSON."""
    optimizer, one, two = (spec[name] for name in ("optimizer", "stage_one", "stage_two"))
    errors = []
    epochs = _first_cosine(one["epochs"], two["epochs"], two["schedule"])
    if epochs and optimizer["warmup_epochs"] >= epochs:
        of = "the run's" if epochs == one["epochs"] + two["epochs"] else "stage one's"
        errors.append(
            FieldError(
                "/optimizer/warmup_epochs",
                f"{optimizer['warmup_epochs']:g}, but after the warm-up the learning rate falls over the rest of {of} "
                f"{epochs} epochs: set less than that",
            )
        )
    errors += [
        FieldError(f"/optimizer/{name}", f"{optimizer[name]:g} is above lr ({optimizer['lr']:g}), the highest rate")
        for name in ("warmup_lr", "min_lr")
        if optimizer[name] > optimizer["lr"]
    ]
    if two["lr"] is None:
        return errors
    where = "/stage_two/lr"
    if two["schedule"] != "restarts":
        errors.append(
            FieldError(where, "it is where a schedule restarts: set stage_two.schedule to restarts, or leave it out")
        )
    elif not (one["epochs"] and two["epochs"]):
        idle = "one" if not one["epochs"] else "two"
        errors.append(
            FieldError(
                where, f"stage {idle} has no epochs, so that nothing restarts: set optimizer.lr, and leave it out"
            )
        )
    elif two["lr"] < optimizer["min_lr"]:
        errors.append(
            FieldError(where, f"{two['lr']:g} is below optimizer.min_lr ({optimizer['min_lr']:g}), where it ends")
        )
    return errors


def _first_cosine(one: Any, two: Any, schedule: Any) -> int:
    """The epochs that the warm-up is a part of; 0 where they are not whole numbers."""
    if type(one) is not int or type(two) is not int:
        return 0
    return one if schedule == "restarts" and one > 0 and two > 0 else max(0, one + two)


def _is_over(value: Any, bound: float) -> bool:
    return isinstance(value, int | float) and value >= bound
