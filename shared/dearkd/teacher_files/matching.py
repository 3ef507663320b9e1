"""The network of timm that a file's tensors belong to: the one that is named, or the only one that they fit."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import dearkd.vision  # noqa: F401  # makes timm importable

# isort: split
import timm
from torch import Tensor

from dearkd.errors import InvalidInput
from dearkd.specs import TeacherSpec
from dearkd.teacher_files.architectures import Figures, nearest, with_figures
from dearkd.teacher_files.checkpoints import Weights, listed
from dearkd.teacher_files.foreign_names import Naming, Twin, modules_of, recognise
from dearkd.teacher_files.namings import NAMINGS, RESNET, WITHOUT_TWIN, is_torchvision_resnet, torchvision_naming
from dearkd.teacher_files.wrappers import unwrapped
from dearkd.vision.architectures import TORCHVISION, in_library, require_known
from dearkd.vision.teachers import blueprint
from dearkd.vision.weight_files import listed_misfits, misfits

OFFERED = 3
"""The number of architectures that an error names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A network, and a file's tensors under its names."""

    architecture: str
    model_args: Mapping[str, Any]
    num_classes: int
    in_chans: Literal[1, 3]
    tensors: Mapping[str, Tensor]
    naming: Naming | None
    remarks: tuple[str, ...]
    modules: frozenset[str]
    """Names of all modules of the network."""
    misfits: Mapping[str, list[str]]
    """The tensors that do not fit, as `dearkd.vision.weight_files.misfits` says."""

    @property
    def wrong(self) -> int:
        return sum(map(len, self.misfits.values()))


def match(weights: Weights, architecture: str | None, model_args: Mapping[str, Any]) -> Match:
    """The network that the tensors fit, under timm's names.

    Args:
        weights: as a file has them.
        architecture: a name of timm, `torchvision:NAME`, or None to find it. A network of torchvision that timm has a
            twin of becomes that twin.
        model_args: further arguments of `timm.create_model`; they win over those that a translation asks for.

    Raises:
        InvalidInput: if no or several networks fit, or the named one does not; the message says which come nearest,
            and which tensors do not fit.
    """
    readings: list[Weights] = []
    closest: Match | None = None
    for reading in unwrapped(weights):
        readings.append(reading)
        found = list(_fits(reading, architecture, model_args))
        fitting = [each for each in found if not each.wrong]
        if fitting:
            return _only(fitting, reading)
        closest = min([*found, *([closest] if closest else [])], key=lambda each: each.wrong, default=None)
    if architecture is None and (closest is None or closest.naming is None):
        raise InvalidInput(_unknown(readings[0], model_args), code="unknown_architecture")
    assert closest is not None  # a name was given or a naming recognised, and a network compared
    raise InvalidInput.at(
        "/weights", f"they do not fit {in_library(closest.architecture)}; {listed_misfits(closest.misfits)}"
    )


def _fits(weights: Weights, architecture: str | None, model_args: Mapping[str, Any]) -> Iterator[Match]:
    """The networks to compare with, each with what does not fit."""
    naming = recognise(weights.tensors, NAMINGS)
    if architecture is None:
        if naming is not None:
            similar = with_figures(Figures.of(weights.tensors))
            twins = naming.all_twins()
            likely = [twin for twin in twins if twin.architecture in similar]
            yield from _all_compared(weights, naming, likely or twins, model_args)
        else:
            names = _without_twin(weights) or with_figures(Figures.of(weights.tensors))
            yield from _all_compared(weights, None, map(Twin, names), model_args)
    elif architecture.startswith(TORCHVISION):
        require_known(architecture)
        translation = torchvision_naming(architecture.removeprefix(TORCHVISION))
        if translation is not None:
            yield _compared(weights, *translation, model_args)
        else:
            yield _compared(weights, None, Twin(architecture), model_args)
    else:
        require_known(architecture)
        twin = naming and naming.twin_named(architecture)
        if naming is not None and twin is None:
            known = ", ".join(sorted(twin.architecture for twin in naming.all_twins()))
            raise InvalidInput.at(
                "/architecture",
                f"the names are those of {naming.library}'s {naming.family}, and none is known to compute the same as "
                f"timm's {architecture}: one of {known}, or leave --architecture out",
            )
        yield _compared(weights, naming, twin or Twin(architecture), model_args)


def _without_twin(weights: Weights) -> list[str]:
    """Networks of torchvision itself whose names these may be; none where timm's are to be tried."""
    modules = modules_of(weights.tensors)
    return [TORCHVISION + name for mark, names in WITHOUT_TWIN.items() if mark in modules for name in names]


def _all_compared(
    weights: Weights, naming: Naming | None, twins: Iterable[Twin], model_args: Mapping[str, Any]
) -> Iterator[Match]:
    """The comparisons with networks that nobody named, but for those that do not take the arguments."""
    for twin in twins:
        with suppress(InvalidInput):
            yield _compared(weights, naming, twin, model_args)


def _compared(weights: Weights, naming: Naming | None, twin: Twin, model_args: Mapping[str, Any]) -> Match:
    arguments = {**twin.model_args, **model_args}
    wanted = _layout(twin.architecture, arguments, 1000, 3, weights)
    tensors = naming.translate(weights.tensors, wanted) if naming is not None else weights.tensors
    classes, channels = _read_off(twin.architecture, tensors)
    if (classes, channels) != (1000, 3):
        wanted = _layout(twin.architecture, arguments, classes, channels, weights)
    translated = (
        (f"translated {naming.library}'s names of {naming.family} to timm's",) if naming and naming.marks else ()
    )
    return Match(
        architecture=twin.architecture,
        model_args=arguments,
        num_classes=classes,
        in_chans=channels,
        tensors=tensors,
        naming=naming,
        remarks=(*weights.remarks, *translated),
        modules=frozenset(getattr(wanted, "_metadata", ())),
        misfits=misfits(wanted, tensors),
    )


def _layout(
    architecture: str, model_args: Mapping[str, Any], classes: int, channels: Literal[1, 3], weights: Weights
) -> dict[str, Tensor]:
    spec = TeacherSpec.check(
        {
            "name": "layout",
            "architecture": architecture,
            "model_args": dict(model_args),
            "num_classes": classes,
            "in_chans": channels,
            "image_size": 224,
            "mean": [0.5] * channels,
            "std": [0.5] * channels,
        }
    )
    return blueprint(spec, len(weights.tensors))


def _read_off(architecture: str, tensors: Mapping[str, Tensor]) -> tuple[int, Literal[1, 3]]:
    """Classes and channels by the shapes of the classifier and the first convolution; else 1000 and 3."""
    if architecture.startswith(TORCHVISION):
        classifier = next((tensors[name] for name in ("fc.weight", "classifier.1.weight") if name in tensors), None)
        stem = None
    else:
        cfg = timm.get_pretrained_cfg(architecture)
        classifier = _first(cfg and cfg.classifier, tensors)
        stem = _first(cfg and cfg.first_conv, tensors)
    classes = classifier.shape[0] if classifier is not None and classifier.dim() in (2, 4) else 1000
    channels = stem.shape[1] if stem is not None and stem.dim() == 4 else 3
    return (classes if 2 <= classes <= 100_000 else 1000), (1 if channels == 1 else 3)


def _first(modules: Any, tensors: Mapping[str, Tensor]) -> Tensor | None:
    names = [modules] if isinstance(modules, str) else list(modules or ())
    return tensors.get(f"{names[0]}.weight") if names else None


def _only(found: list[Match], weights: Weights) -> Match:
    """The one that is meant. Modules without tensors tell apart what the tensors do not, such as blurred pooling."""
    if len(found) > 1 and weights.modules:
        same = [each for each in found if each.modules == weights.modules]
        if not same and is_torchvision_resnet(weights.modules):
            same = [each for each in found if each.architecture in RESNET.twins]
        found = same or found
    if len(found) > 1:
        names = _shortest(each.architecture for each in found)
        raise InvalidInput(
            f"the names and shapes are those of {' and of '.join(names)}, which compute different things: say which "
            f"with --architecture, as in --architecture {names[0]}",
            code="several_architectures",
        )
    return found[0]


def _shortest(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (len(name), name))[:OFFERED]


def _unknown(weights: Weights, model_args: Mapping[str, Any]) -> str:
    figures = Figures.of(weights.tensors)
    compared = list(_all_compared(weights, None, map(Twin, nearest(figures, 2 * OFFERED)), model_args))
    compared.sort(key=lambda each: (each.wrong, len(each.architecture)))
    offers = "; ".join(f"{each.architecture} ({listed_misfits(each.misfits, most=2)})" for each in compared[:OFFERED])
    return (
        f"none of timm's architectures has these {figures.tensors} tensors ({listed(weights.tensors)}). Nearest: "
        f"{offers}. Say which with --architecture, and --model-arg where it was built with other arguments"
    )
