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
import timm
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

CLEAR_GAIN = 0.03
CLEAR_DEVIATIONS = 3.0
"""A change is clearly better if it raises top-1 by CLEAR_GAIN at least, and the images that it wins exceed those that
it loses by so many standard deviations of a fair coin (McNemar, Psychometrika 1947) [our choice]. A dozen changes are
tried, of which chance alone would then pass one in fifty checks."""

PIXELS_AT_ONCE = 2**22
"""The most numbers in a batch's input."""
IMAGES_AT_ONCE = 256

NORMALISATIONS: Mapping[int, Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    3: {
        "mean and std of ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "pixels from -1 to 1": ((0.5,) * 3, (0.5,) * 3),
        "pixels from 0 to 1": ((0.0,) * 3, (1.0,) * 3),
        "pixels from 0 to 255": ((0.0,) * 3, (1 / 255,) * 3),
    },
    1: {
        "mean and std of ImageNet in grey": ((0.449,), (0.226,)),
        "mean and std of MNIST": ((0.1307,), (0.3081,)),
        "pixels from -1 to 1": ((0.5,), (0.5,)),
        "pixels from 0 to 1": ((0.0,), (1.0,)),
        "pixels from 0 to 255": ((0.0,), (1 / 255,)),
    },
}
"""Usual means and standard deviations, of pixels in [0, 1], by number of channels."""

ORDERS: Mapping[ClassOrder, str] = {
    "name": "by name, as torchvision sorts them",
    "natural": "in natural order, as timm sorts them",
    "number": "by number",
}

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
    together: Sequence[str]
    """The changes that help on top of each other, in order; fewer than two where one or none does it all."""
    figures_together: Figures | None
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
            self.known[setting] = torch.cat(parts)
        return self.known[setting]

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
    setting, together = given, list[str]()
    while best := next(((trial, changed) for trial, changed in changes if trial.clearly_better), None):
        together.append(best[0].change)
        setting = best[1]
        changes = _changes(bench, setting)
    own_order, figures_own = _own_order(bench, setting)
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


def padding_twin(architecture: str) -> str | None:
    """The timm network that takes the same weights and pads as TensorFlow does, or as PyTorch; None without one."""
    other = architecture.removeprefix("tf_") if architecture.startswith("tf_") else f"tf_{architecture}"
    return other if timm.is_model(other) else None


def _changes(bench: _Bench, base: _Setting) -> list[tuple[Trial, _Setting]]:
    """Every single change of a setting, measured against it, best first."""
    before = bench.is_right(base)
    found = []
    for kind, change, remedy, setting in _settings(bench, base):
        figures, better = bench.figures(setting), is_clearly_better(before, bench.is_right(setting))
        trial = Trial(kind=kind, change=change, remedy=remedy, figures=figures, clearly_better=better)
        found.append((trial, setting))
    return sorted(found, key=lambda tried: -tried[0].figures.top1)


def _settings(bench: _Bench, base: _Setting) -> Iterator[tuple[Kind, str, str, _Setting]]:
    """Kind, change in words, remedy and setting of every change that makes a difference."""
    spec = bench.spec
    for words, (mean, std) in NORMALISATIONS[spec.in_chans].items():
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


def _own_order(bench: _Bench, setting: _Setting) -> tuple[dict[str, int] | None, Figures | None]:
    """A one-to-one order of classes that the answers follow, found on every other image and measured on the rest."""
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
    if not is_clearly_better(answers[rest] == labels[rest], answers[rest] == mapped):
        return None, None
    names = bench.class_names(setting)
    return {names[label]: answer for label, answer in sorted(order.items())}, figures_of(logits[rest], mapped)


def _close(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(abs(a - b) <= 0.02 * max(a, b, 0.1) for a, b in zip(one, other, strict=True))


def _flag(values: Sequence[float]) -> str:
    return ",".join(f"{value:.3g}" for value in values)


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
