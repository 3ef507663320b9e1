"""Networks of teachers' specs, and their sources: timm, torchvision, or a factory that the operator has installed."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

import timm
from timm.data import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
)
from torch import nn
from torchvision import models

from dearkd.errors import InvalidInput
from dearkd.specs import TeacherSpec
from dearkd.vision.bounded_construction import ParametersOnMeta

TORCHVISION = "torchvision:"
GROUP = "dearkd.teachers"
"""Entry points: a name that specs call `architecture`, and `package:factory`. The factory is called with `num_classes`,
`in_chans` and the spec's `model_args`, and returns an `nn.Module` with random weights."""

SLOW_TO_FILL = ("googlenet", "inception_v3")
"""torchvision's networks that draw their weights from a truncated normal distribution, which takes half a minute."""

TRANSFORM_INPUT = "transform_input"
TRANSFORMING = ("torchvision:googlenet", "torchvision:inception_v3")
"""Networks with a switch `TRANSFORM_INPUT`, which no weights show and torchvision turns on for its own. They then take
images normalised as ImageNet's and undo that, so that they see (pixel − 0.5) / 0.5: without the switch, the same
weights answer the same to images that were normalised so."""


def require_known(architecture: str) -> None:
    """Raises `InvalidInput` at `/architecture`, with what was perhaps meant, if there is none of that name here."""
    if architecture.startswith(TORCHVISION):
        name = architecture.removeprefix(TORCHVISION)
        if name not in of_torchvision():
            raise InvalidInput.at(
                "/architecture",
                f"{name!r} is none of torchvision's networks for classification{did_you_mean(name, of_torchvision())}",
            )
        return
    if architecture in _plugged_in():
        return
    if "." in architecture or not timm.is_model(architecture):
        raise InvalidInput.at(
            "/architecture",
            f"{architecture!r} is no name of timm.list_models() (timm {timm.__version__})"
            + did_you_mean(architecture.partition(".")[0], [*timm.list_models(), *_plugged_in()]),
        )


def create(spec: TeacherSpec) -> nn.Module:
    """The network of a spec, with random weights; never downloads any.

    Raises:
        Exception: whatever its constructor raises, also of arguments that it does not know.
    """
    return _create(spec, **spec.model_args)


def _create(spec: TeacherSpec, **model_args: Any) -> nn.Module:
    if spec.architecture.startswith(TORCHVISION):
        if spec.in_chans != 3:
            raise ValueError("torchvision's networks take images of 3 channels")
        name = spec.architecture.removeprefix(TORCHVISION)
        more = {"init_weights": False} if name in SLOW_TO_FILL else {}
        return cast(nn.Module, models.get_model(name, weights=None, num_classes=spec.num_classes, **more, **model_args))
    plugged_in = _plugged_in().get(spec.architecture)
    if plugged_in is not None:
        factory: Callable[..., nn.Module] = plugged_in.load()
        return factory(num_classes=spec.num_classes, in_chans=spec.in_chans, **model_args)
    return timm.create_model(
        spec.architecture, pretrained=False, num_classes=spec.num_classes, in_chans=spec.in_chans, **model_args
    )


def in_library(architecture: str) -> str:
    """`timm's resnet18`, `torchvision's googlenet`, or the name alone of a network that the operator has installed."""
    if architecture.startswith(TORCHVISION):
        return f"torchvision's {architecture.removeprefix(TORCHVISION)}"
    return architecture if architecture in _plugged_in() else f"timm's {architecture}"


@dataclass(frozen=True, slots=True)
class PublishedInput:
    """The images of a network's own published weights."""

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def published_input(architecture: str, model_args: Mapping[str, Any]) -> PublishedInput | None:
    """The input of a library's own weights of a network; None where it has none."""
    if architecture.startswith(TORCHVISION):
        side = 299 if architecture.endswith("inception_v3") else 224
        if architecture in TRANSFORMING and TRANSFORM_INPUT not in model_args:
            return PublishedInput((3, side, side), IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD)
        return PublishedInput((3, side, side), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    cfg = timm.get_pretrained_cfg(architecture) if timm.is_model(architecture) else None
    return PublishedInput(cfg.input_size, cfg.mean, cfg.std) if cfg is not None else None


def known_arguments(spec: TeacherSpec) -> str:
    """A guess at what was meant by those arguments that the architecture's class does not have."""
    try:
        with ParametersOnMeta():  # it may be the largest of all networks
            known = inspect.signature(type(_create(spec)).__init__).parameters
    except Exception:  # an architecture's constructor raises what it likes
        return ""
    unknown = [name for name in spec.model_args if name not in known]
    return "".join(did_you_mean(name, known) for name in unknown)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean a or b?`, or nothing where no name is close."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.7)
    return f"; did you mean {' or '.join(close)}?" if close else ""


@cache
def of_torchvision() -> frozenset[str]:
    """Names of torchvision's networks for classification."""
    return frozenset(models.list_models(module=models))


@cache
def _plugged_in() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}
