"""The learning rate of a training run over its epochs: defaults that fit it, and the values that make no schedule."""

from dearkd.errors import FieldError
from dearkd.specs.training import TrainingSpec


def fitting_schedule(spec: TrainingSpec) -> dict[str, float]:
    """The `warmup_epochs`, `warmup_lr` and `min_lr` of a run, where its own do not fit it, made smaller [R].

    A warm-up that would not end before the first cosine does takes half of it, and a rate that is no smaller than the
    lowest peak is a tenth of that.
    """
    optimizer, epochs = spec.optimizer, _first_cosine(spec)
    fitting: dict[str, float] = {}
    if epochs and optimizer.warmup_epochs >= epochs:
        fitting["warmup_epochs"] = epochs / 2
    peak = min(optimizer.lr, spec.stage_two.lr or optimizer.lr)
    for name in ("warmup_lr", "min_lr"):
        if getattr(optimizer, name) >= peak:
            fitting[name] = peak / 10
    return fitting


def schedule_refusals(spec: TrainingSpec) -> list[FieldError]:
    """Find what stands against the schedule of a training spec."""
    optimizer, one, two = spec.optimizer, spec.stage_one, spec.stage_two
    errors = []
    epochs = _first_cosine(spec)
    if epochs and optimizer.warmup_epochs >= epochs:
        of = "the run's" if epochs == one.epochs + two.epochs else "stage one's"
        errors.append(
            FieldError(
                "/optimizer/warmup_epochs",
                f"{optimizer.warmup_epochs:g}, but after the warm-up the learning rate falls over the rest of {of} "
                f"{epochs} epochs: set less than that",
            )
        )
    errors += [
        FieldError(
            f"/optimizer/{name}", f"{getattr(optimizer, name):g} is above lr ({optimizer.lr:g}), the highest rate"
        )
        for name in ("warmup_lr", "min_lr")
        if getattr(optimizer, name) > optimizer.lr
    ]
    if two.lr is None:
        return errors
    where = "/stage_two/lr"
    if two.schedule != "restarts":
        errors.append(
            FieldError(where, "it is where a schedule restarts: set stage_two.schedule to restarts, or leave it out")
        )
    elif not (one.epochs and two.epochs):
        idle = "one" if not one.epochs else "two"
        errors.append(
            FieldError(
                where, f"stage {idle} has no epochs, so that nothing restarts: set optimizer.lr, and leave it out"
            )
        )
    elif two.lr < optimizer.min_lr:
        errors.append(FieldError(where, f"{two.lr:g} is below optimizer.min_lr ({optimizer.min_lr:g}), where it ends"))
    return errors


def _first_cosine(spec: TrainingSpec) -> int:
    """The epochs that the warm-up is a part of."""
    one, two = spec.stage_one, spec.stage_two
    return one.epochs if two.schedule == "restarts" and one.epochs and two.epochs else spec.epochs
