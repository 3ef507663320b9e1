"""The check of a teacher on real images: how often it is right, and which change of its input would make it so.

Wrong preprocessing raises no error anywhere: the teacher only answers worse, and what is learnt from it is worse. So
the usual mistakes are made good in turn, on the same images, and what comes of each is measured.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import dearkd.vision  # noqa: F401  # makes timm importable

# isort: split
import torch
from torch import Tensor

from dearkd.errors import InvalidInput
from dearkd.specs import TeacherSpec
from dearkd.specs.geometry import SMALLEST_IMAGE
from dearkd.vision.check_bench import Bench, Figures, Setting, figures_of
from dearkd.vision.image_sample import ImageSample
from dearkd.vision.teachers import check_teacher
from dearkd.vision.usual_inputs import NORMALISATIONS, ORDERS, padding_twin

CLEAR_GAIN = 0.03
CLEAR_DEVIATIONS = 3.0
"""A change is clearly better if it raises top-1 by CLEAR_GAIN at least, and the images that it wins exceed those that
it loses by so many standard deviations of a fair coin (McNemar, Psychometrika 1947) [our choice]. A dozen changes are
tried, of which chance alone would then pass one in fifty checks."""

POOR = 0.5
"""Below this top-1, two mistakes at once are looked for that need passes of their own [our choice]."""

Kind = Literal["image size", "normalisation", "class order", "channel order", "padding"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A change that was tried, and what came of it."""

    kind: Kind
    change: str
    remedy: str
    """The thing to do if it is the right one."""
    flags: str
    """The flags of `dearkd teacher add` and `dearkd distill` that do it; empty where none does."""
    figures: Figures
    clearly_better: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A teacher's answer to one image."""

    image: str
    label: int
    answer: int
    confidence: float
    """In [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherCheck:
    """The findings about a teacher on some images."""

    images: int
    as_given: Figures
    trials: Sequence[Trial]
    """Changes one by one, best first."""
    together: Sequence[Trial]
    """The changes to make at once, each as it was measured before the last one of them; none where none is clearly
    better."""
    figures_together: Figures | None
    """Measured with all of them, where they are two or more."""
    own_order: Mapping[str, int] | None
    """The class that the teacher answers, by class name, where that fits clearly better than any usual order."""
    figures_own_order: Figures | None
    """Measured on other images than those that the order was found on."""
    answers: Sequence[Answer]
    """Answers of the teacher as it is given, in the order of the images."""

    @property
    def better(self) -> list[Trial]:
        """The changes that are clearly better, best first."""
        return [trial for trial in self.trials if trial.clearly_better]


def check_on_images(
    spec: TeacherSpec,
    weights: Path,
    sample: ImageSample,
    device: torch.device | str = "cpu",
    on_answers: Callable[[int], None] = lambda _: None,
) -> TeacherCheck:
    """Measure a teacher on real images, as it is given and with each usual mistake made good.

    Args:
        spec: how to build it, and how its inputs are made.
        weights: a safetensors file of its tensors.
        sample: images that it should know, from `read_sample` for the same spec.
        device: where to compute.
        on_answers: called with the number of images that have been answered since the last call.

    Raises:
        InvalidInput: as `load_teacher` and `check_teacher`.
    """
    bench = Bench(spec, weights, sample, torch.device(device), on_answers)
    check_teacher(bench.network(spec.architecture), spec, spec.image_size)
    given = Setting(tuple(spec.mean), tuple(spec.std), spec.architecture)
    trials = changes = _changes(bench, given)
    setting, together = given, list[Trial]()
    while step := _next_step(bench, setting, changes):
        together += step[0]
        setting = step[1]
        changes = _changes(bench, setting)
    # A usual order may be right by chance about a few classes of an order that is none of them: so from both ends.
    own_order, figures_own = _own_order(bench, setting, setting)
    if own_order is None:
        own_order, figures_own = _own_order(bench, given, setting)
        together = [] if own_order is not None else together
    if own_order is None:
        for trial, sized in trials:
            if trial.kind == "image size":
                own_order, figures_own = _own_order(bench, sized, setting)
                together = [trial] if own_order is not None else together
    logits = bench.logits(given)
    confidences, answers = logits.softmax(1).max(1)
    return TeacherCheck(
        images=len(sample.labels),
        as_given=bench.figures(given),
        trials=[trial for trial, _ in trials],
        together=together,
        figures_together=bench.figures(setting) if len(together) > 1 else None,
        own_order=own_order,
        figures_own_order=figures_own,
        answers=[
            Answer(image=image, label=label, answer=answer, confidence=confidence)
            for image, label, answer, confidence in zip(
                sample.names, sample.labels.tolist(), answers.tolist(), confidences.tolist(), strict=True
            )
        ],
    )


def is_clearly_better(before: Tensor, after: Tensor) -> bool:
    """Tell whether a change that makes these images right, (N,) each, is one that chance does not explain."""
    won, lost = int((after & ~before).sum()), int((before & ~after).sum())
    return won > lost and won - lost >= max(CLEAR_GAIN * len(before), CLEAR_DEVIATIONS * math.sqrt(won + lost))


def _changes(bench: Bench, base: Setting) -> list[tuple[Trial, Setting]]:
    """Every single change of a setting, measured against it, best first."""
    before = bench.is_right(base)
    found = []
    for kind, change, remedy, setting in _settings(bench, base):
        figures, better = bench.figures(setting), is_clearly_better(before, bench.is_right(setting))
        flags = remedy if remedy.startswith("--") else ""
        if flags:
            remedy = f"read the teacher with {flags} (`dearkd teacher add` and `dearkd distill` take it)"
        trial = Trial(kind=kind, change=change, remedy=remedy, flags=flags, figures=figures, clearly_better=better)
        found.append((trial, setting))
    return sorted(found, key=lambda tried: -tried[0].figures.top1)


def _next_step(
    bench: Bench, base: Setting, changes: Sequence[tuple[Trial, Setting]]
) -> tuple[list[Trial], Setting] | None:
    """The best change that is clearly better; else the best of several at once, since one mistake hides another."""
    for trial, setting in changes:
        if trial.clearly_better:
            return [trial], setting
    before = bench.is_right(base)
    several = list(_with_orders(changes))  # which costs nothing: the answers are known
    for costly in (False, True):
        if costly and before.double().mean() < POOR:
            several = list(_with_channels(changes))
        clear = [step for step in several if is_clearly_better(before, bench.is_right(step[1]))]
        if clear:
            return max(clear, key=lambda step: bench.figures(step[1]).top1)
    return None


def _with_orders(changes: Sequence[tuple[Trial, Setting]]) -> Iterator[tuple[list[Trial], Setting]]:
    """Every change of what the network sees, with every order of classes."""
    for trial, setting in changes:
        for other, ordered in changes:
            if other.kind == "class order" != trial.kind:
                yield [trial, other], replace(setting, order=ordered.order)


def _with_channels(changes: Sequence[tuple[Trial, Setting]]) -> Iterator[tuple[list[Trial], Setting]]:
    """Every normalisation with the other order of channels, in every order of classes."""
    orders = [([trial], setting.order) for trial, setting in changes if trial.kind == "class order"]
    for trial, setting in changes:
        for other, swapped in changes:
            if trial.kind == "normalisation" and other.kind == "channel order":
                both = replace(setting, swapped=swapped.swapped)
                yield [trial, other], both
                for ordered, order in orders:
                    yield [trial, other, *ordered], replace(both, order=order)


def _settings(bench: Bench, base: Setting) -> Iterator[tuple[Kind, str, str, Setting]]:
    """Kind, change in words, flags (or what to do without any) and setting of every change that makes a difference."""
    spec = bench.spec
    if (side := _own_side(bench, base)) is not None:
        yield "image size", f"{side} px, as these images are", f"--image-size {side}", replace(base, own_size=True)
    usual = {**NORMALISATIONS[spec.in_chans], "mean and std of these images": bench.own_normalisation()}
    for words, (mean, std) in usual.items():
        if not (_close(mean, base.mean) and _close(std, base.std)):
            yield (
                "normalisation",
                words,
                f"--mean {_flag(mean)} --std {_flag(std)}",
                replace(base, mean=mean, std=std),
            )
    known = [bench.labels(base)]
    for order, words in ORDERS.items():
        setting = replace(base, order=order)
        try:
            labels = bench.labels(setting)
        except ValueError:  # not every name is a number
            continue
        if any(torch.equal(labels, others) for others in known):
            continue
        known.append(labels)
        remedy = f"`dearkd dataset add` with --class-order {order}"
        if spec.class_names:
            remedy = "--class-name for each class in that order"
        yield "class order", f"classes {words}", remedy, setting
    if spec.in_chans == 3:
        yield (
            "channel order",
            "RGB in place of BGR" if base.swapped else "BGR in place of RGB",
            "images are read as RGB everywhere here: reverse the input channels of its first convolution, "
            "weight[:, [2, 1, 0]], and its mean and std with them",
            replace(base, swapped=not base.swapped),
        )
    twin = padding_twin(base.architecture)
    if twin is not None:
        setting = replace(base, architecture=twin)
        try:
            bench.network(twin)
        except InvalidInput:  # its namesake is another network
            return
        yield "padding", f"{twin}, with the same weights", f"--architecture {twin}", setting


def _own_side(bench: Bench, base: Setting) -> int | None:
    """The size of the images where that is another and the network takes it."""
    own = bench.sample.own_pixels
    if own is None or base.own_size or own.shape[-1] < SMALLEST_IMAGE:
        return None
    try:
        check_teacher(bench.network(base.architecture), bench.spec, own.shape[-1])
    except InvalidInput:  # it takes one size alone, or none as small
        return None
    return own.shape[-1]


def _own_order(bench: Bench, setting: Setting, rival: Setting) -> tuple[dict[str, int] | None, Figures | None]:
    """A one-to-one order of classes that the answers follow, found on every other image and measured on the rest.

    None where it is not clearly better there than the rival.
    """
    logits, labels = bench.logits(setting), bench.labels(setting)
    within = torch.zeros_like(labels)  # the running number of each image in its class
    for label in labels.unique():
        members = labels == label
        within[members] = torch.arange(int(members.sum()))
    seen = within % 2 == 0
    answers = logits.argmax(1)
    pairs = Counter(zip(labels[seen].tolist(), answers[seen].tolist(), strict=True))
    order: dict[int, int] = {}
    for (label, answer), _ in pairs.most_common():
        if label not in order and answer not in order.values():
            order[label] = answer
    rest = ~seen
    if not rest.any() or all(label == answer for label, answer in order.items()):
        return None, None
    table = torch.tensor([order.get(label, -1) for label in range(logits.shape[1])])
    mapped = table[labels[rest]]
    if not is_clearly_better(bench.is_right(rival)[rest], answers[rest] == mapped):
        return None, None
    names = bench.class_names(setting)
    return {names[label]: answer for label, answer in sorted(order.items())}, figures_of(logits[rest], mapped)


def _close(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(abs(a - b) <= 0.02 * max(a, b, 0.1) for a, b in zip(one, other, strict=True))


def _flag(values: Sequence[float]) -> str:
    return ",".join(f"{value:.4g}" for value in values)


def check_as_json(check: TeacherCheck, sample: ImageSample) -> dict[str, Any]:
    """The findings as JSON."""
    names = sample.class_names
    return {
        **asdict(check),
        "answers": [
            {
                "image": answer.image,
                "class": names[answer.label],
                "answer": names[answer.answer],
                "confidence": answer.confidence,
                "right": answer.label == answer.answer,
            }
            for answer in check.answers
        ],
    }
