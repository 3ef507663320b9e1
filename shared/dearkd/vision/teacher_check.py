"""The check of a teacher on real images: how often it is right, and which change of its input would make it so.

Wrong preprocessing raises no error anywhere: the teacher only answers worse, and what is learnt from it is worse. So
the usual mistakes are made good in turn, on the same images, and what comes of each is measured.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import dearkd.vision  # noqa: F401  # makes timm importable

# isort: split
import torch
from torch import Tensor, nn

from dearkd.choices import ClassOrder
from dearkd.errors import InvalidInput
from dearkd.specs import TeacherSpec
from dearkd.specs.class_order import sorted_by
from dearkd.vision.calibration import expected_calibration_error
from dearkd.vision.image_sample import ImageSample
from dearkd.vision.images import to_input
from dearkd.vision.teachers import check_teacher, load_teacher
from dearkd.vision.usual_inputs import NORMALISATIONS, ORDERS, padding_twin

CLEAR_GAIN = 0.03
CLEAR_DEVIATIONS = 3.0
"""A change is clearly better if it raises top-1 by CLEAR_GAIN at least, and the images that it wins exceed those that
it loses by so many standard deviations of a fair coin (McNemar, Psychometrika 1947) [our choice]. A dozen changes are
tried, of which chance alone would then pass one in fifty checks."""

POOR = 0.5
"""Below this top-1, two mistakes at once are looked for that need passes of their own [our choice]."""

PIXELS_AT_ONCE = 2**22
"""The most numbers in a batch's input."""
IMAGES_AT_ONCE = 256

Kind = Literal["as given", "normalisation", "class order", "channel order", "padding"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Answers measured against labels. All are fractions in [0, 1]."""

    top1: float
    top5: float
    """1 where there are fewer than five classes."""
    expected_calibration_error: float
    """Over 15 bins."""
    mean_confidence: float
    """The mean probability of the class that is answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A change that was tried, and what came of it."""

    kind: Kind
    change: str
    remedy: str
    """The thing to do if it is the right one."""
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


@dataclass(frozen=True, slots=True)
class _Setting:
    """Everything about the input of a network that may be wrong."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    architecture: str
    order: ClassOrder | None = None
    swapped: bool = False


@dataclass(slots=True)
class _Bench:
    """The images, and the answers to them in the settings that were tried."""

    spec: TeacherSpec
    weights: Path
    sample: ImageSample
    device: torch.device
    networks: dict[str, nn.Module] = field(default_factory=dict)
    known: dict[_Setting, Tensor] = field(default_factory=dict)

    def network(self, architecture: str) -> nn.Module:
        if architecture not in self.networks:
            spec = self.spec.model_copy(update={"architecture": architecture})
            self.networks[architecture] = load_teacher(spec, self.weights, self.device)
        return self.networks[architecture]

    @torch.inference_mode()
    def logits(self, setting: _Setting) -> Tensor:
        """(N, num_classes), float32, on the CPU. The order of labels makes no difference to them."""
        setting = replace(setting, order=None)
        if setting not in self.known:
            network = self.network(setting.architecture)
            spec = self.spec.model_copy(update={"mean": list(setting.mean), "std": list(setting.std)})
            pixels = self.sample.pixels
            at_once = max(1, min(IMAGES_AT_ONCE, PIXELS_AT_ONCE // pixels[0].numel()))
            parts = []
            for part in pixels.split(at_once):
                # Mean and std are those of the network's own channels, as its code has them.
                inputs = to_input((part.flip(1) if setting.swapped else part).to(self.device), spec)
                parts.append(network(inputs).float().cpu())
            # Input that it was never made for may lead out of the finite numbers, which JSON has not.
            self.known[setting] = torch.cat(parts).nan_to_num()
        return self.known[setting]

    def own_normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the images, a number a channel."""
        pixels = self.sample.pixels.transpose(0, 1).flatten(1).float() / 255
        mean, std = pixels.mean(1).tolist(), pixels.std(1).clamp(min=0.001).tolist()
        return tuple(round(value, 4) for value in mean), tuple(round(value, 4) for value in std)

    def class_names(self, setting: _Setting) -> Sequence[str]:
        """The names in the order of labels. Raises `ValueError` where that is by number, and a name is none."""
        names = self.sample.class_names
        return names if setting.order is None else sorted_by(setting.order, names)

    def labels(self, setting: _Setting) -> Tensor:
        places = {name: label for label, name in enumerate(self.class_names(setting))}
        return torch.tensor([places[name] for name in self.sample.class_names])[self.sample.labels]

    def figures(self, setting: _Setting) -> Figures:
        return figures_of(self.logits(setting), self.labels(setting))

    def is_right(self, setting: _Setting) -> Tensor:
        """(N,), by top-1."""
        return self.logits(setting).argmax(1) == self.labels(setting)


def check_on_images(
    spec: TeacherSpec, weights: Path, sample: ImageSample, device: torch.device | str = "cpu"
) -> TeacherCheck:
    """Measure a teacher on real images, as it is given and with each usual mistake made good.

    Args:
        spec: how to build it, and how its inputs are made.
        weights: a safetensors file of its tensors.
        sample: images that it should know, from `read_sample` for the same spec.
        device: where to compute.

    Raises:
        InvalidInput: as `load_teacher` and `check_teacher`.
    """
    bench = _Bench(spec, weights, sample, torch.device(device))
    check_teacher(bench.network(spec.architecture), spec, spec.image_size)
    given = _Setting(tuple(spec.mean), tuple(spec.std), spec.architecture)
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


def figures_of(logits: Tensor, labels: Tensor) -> Figures:
    """Figures of logits (N, num_classes) for labels (N,)."""
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = ranked == labels[:, None]
    confidences = logits.softmax(1).max(1).values
    return Figures(
        top1=hits[:, 0].double().mean().item(),
        top5=hits.any(1).double().mean().item(),
        expected_calibration_error=expected_calibration_error(confidences, hits[:, 0]),
        mean_confidence=confidences.double().mean().item(),
    )


def is_clearly_better(before: Tensor, after: Tensor) -> bool:
    """Tell whether a change that makes these images right, (N,) each, is one that chance does not explain."""
    won, lost = int((after & ~before).sum()), int((before & ~after).sum())
    return won > lost and won - lost >= max(CLEAR_GAIN * len(before), CLEAR_DEVIATIONS * math.sqrt(won + lost))


def _changes(bench: _Bench, base: _Setting) -> list[tuple[Trial, _Setting]]:
    """Every single change of a setting, measured against it, best first."""
    before = bench.is_right(base)
    found = []
    for kind, change, remedy, setting in _settings(bench, base):
        figures, better = bench.figures(setting), is_clearly_better(before, bench.is_right(setting))
        trial = Trial(kind=kind, change=change, remedy=remedy, figures=figures, clearly_better=better)
        found.append((trial, setting))
    return sorted(found, key=lambda tried: -tried[0].figures.top1)


def _next_step(
    bench: _Bench, base: _Setting, changes: Sequence[tuple[Trial, _Setting]]
) -> tuple[list[Trial], _Setting] | None:
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


def _with_orders(changes: Sequence[tuple[Trial, _Setting]]) -> Iterator[tuple[list[Trial], _Setting]]:
    """Every change of what the network sees, with every order of classes."""
    for trial, setting in changes:
        for other, ordered in changes:
            if other.kind == "class order" != trial.kind:
                yield [trial, other], replace(setting, order=ordered.order)


def _with_channels(changes: Sequence[tuple[Trial, _Setting]]) -> Iterator[tuple[list[Trial], _Setting]]:
    """Every normalisation with the other order of channels, in every order of classes."""
    orders = [([trial], setting.order) for trial, setting in changes if trial.kind == "class order"]
    for trial, setting in changes:
        for other, swapped in changes:
            if trial.kind == "normalisation" and other.kind == "channel order":
                both = replace(setting, swapped=swapped.swapped)
                yield [trial, other], both
                for ordered, order in orders:
                    yield [trial, other, *ordered], replace(both, order=order)


def _settings(bench: _Bench, base: _Setting) -> Iterator[tuple[Kind, str, str, _Setting]]:
    """Kind, change in words, remedy and setting of every change that makes a difference."""
    spec = bench.spec
    usual = {**NORMALISATIONS[spec.in_chans], "mean and std of these images": bench.own_normalisation()}
    for words, (mean, std) in usual.items():
        if not (_close(mean, base.mean) and _close(std, base.std)):
            yield (
                "normalisation",
                words,
                f"`dearkd teacher add` with --mean {_flag(mean)} --std {_flag(std)}",
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
            remedy = "`dearkd teacher add` with --class-name for each class in that order"
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
        yield "padding", f"{twin}, with the same weights", f"`dearkd teacher add` with --architecture {twin}", setting


def _own_order(bench: _Bench, setting: _Setting, rival: _Setting) -> tuple[dict[str, int] | None, Figures | None]:
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
