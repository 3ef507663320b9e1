"""Teachers: from a spec and a safetensors file to a frozen CNN, with every check that can be made at the door."""

import difflib
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import safetensors
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dearkd.errors import InvalidInput, reason
from dearkd.specs import TeacherSpec
from dearkd.specs.presets import half_size

BatchNorm = nn.BatchNorm2d | nn.SyncBatchNorm


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherDescription:
    """What registering a teacher finds out about it."""

    parameters: int
    batch_norm_layers: int
    refused_input_sizes: list[int]
    """Sides of images that it cannot take. Only half its image size is tried, with which `imagenet` begins."""


def build_teacher(spec: TeacherSpec) -> nn.Module:
    """The spec's architecture with random weights; never downloads any.

    Raises:
        InvalidInput: at `/architecture` or `/model_args`.
    """
    if "." in spec.architecture or not timm.is_model(spec.architecture):
        raise InvalidInput.at(
            "/architecture",
            f"{spec.architecture!r} is no name of timm.list_models() (timm {timm.__version__})"
            + _did_you_mean(spec.architecture.partition(".")[0], timm.list_models()),
        )
    try:
        return _create(spec, **spec.model_args)
    except Exception as error:  # an architecture's constructor raises what it likes
        if not spec.model_args:
            raise InvalidInput.at(
                "/architecture", f"{spec.architecture} cannot be built with in_chans={spec.in_chans}: {reason(error)}"
            ) from error
        hint = _known_arguments(spec)
        raise InvalidInput.at(
            "/model_args", f"{spec.architecture} does not take {spec.model_args}: {reason(error)}{hint}"
        ) from error


def load_teacher(spec: TeacherSpec, weights: Path, device: torch.device | str = "cpu") -> nn.Module:
    """The teacher with its weights, in eval mode and frozen.

    Args:
        spec: how to build it.
        weights: a safetensors file of exactly the architecture's `state_dict()`.
        device: where to put it.

    Raises:
        InvalidInput: at `/weights`, naming the tensors that are missing, unexpected or of another shape; or as
            `build_teacher`.
    """
    shapes = _tensor_shapes(weights)
    teacher = build_teacher(spec)
    _require_fit(spec, teacher, shapes)
    teacher.load_state_dict(load_file(weights))
    return teacher.eval().requires_grad_(False).to(device)


def describe_teacher(spec: TeacherSpec, weights: Path) -> TeacherDescription:
    """The whole check at the door: loads the teacher and runs `check_teacher` at its image size.

    Raises:
        InvalidInput: if it cannot be built, loaded or inverted, with a pointer and the reason.
    """
    teacher = load_teacher(spec, weights)
    check_teacher(teacher, spec, spec.image_size)
    return TeacherDescription(
        parameters=sum(parameter.numel() for parameter in teacher.parameters()),
        batch_norm_layers=len(batch_norm_layers(teacher)),
        refused_input_sizes=_refused_input_sizes(teacher, spec),
    )


def _refused_input_sizes(teacher: nn.Module, spec: TeacherSpec) -> list[int]:
    """Attention over a map has weights for each place in it, so that such a network takes one size alone."""
    half = half_size(spec.image_size)
    try:
        check_teacher(teacher, spec, half)
    except InvalidInput:
        return [half]
    return []


def check_teacher(teacher: nn.Module, spec: TeacherSpec, input_size: int, *, pointer: str = "/image_size") -> None:
    """Whether a teacher can be inverted at this input size.

    Raises:
        InvalidInput: if it is in training mode, has a weight that is not finite, has no BatchNorm layer or one without
            usable statistics (negative, all of them zero, or zero for a channel that is not dead), or does not answer a
            batch of (2, in_chans, input_size, input_size) with finite logits of shape (2, num_classes).
    """
    if any(module.training for module in teacher.modules()):
        raise InvalidInput.at("/architecture", "the teacher is in training mode: call eval() on it")
    for name, tensor in teacher.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise InvalidInput.at("/weights", f"{name} holds values that are not finite")
    layers = batch_norm_layers(teacher)
    if not layers:
        raise InvalidInput.at(
            "/architecture",
            f"{spec.architecture} has no BatchNorm2d layer, and images are made from their statistics: "
            "use a CNN with BatchNorm",
            code="no_batch_norm",
        )
    for name, layer in layers:
        variance = cast(Tensor, layer.running_var)
        # A dead channel of a trained network may well have a variance of zero; a layer of them was never trained.
        if (variance < 0).any() or not (variance > 0).any():
            raise InvalidInput.at("/weights", f"{name}.running_var must be positive, but is zero or negative")
    parameter = next(teacher.parameters())
    batch = torch.zeros(2, spec.in_chans, input_size, input_size, device=parameter.device, dtype=parameter.dtype)
    try:
        with torch.no_grad():
            _, logits = features_and_logits(teacher, batch)
    except Exception as error:  # what a network raises on a map of no pixels is its own affair
        remedy = "" if input_size == spec.image_size else f"; those of its image_size, {spec.image_size}, it takes"
        raise InvalidInput.at(
            pointer,
            f"{spec.architecture} cannot take images of {input_size}×{input_size} pixels: {reason(error)}{remedy}",
        ) from error
    if logits.shape != (2, spec.num_classes):
        raise InvalidInput.at(
            "/num_classes",
            f"the teacher answers two images with a tensor of shape {tuple(logits.shape)} instead of "
            f"(2, {spec.num_classes})",
        )
    if not torch.isfinite(logits).all():
        raise InvalidInput.at("/weights", "the logits of a grey image are not finite")
    noise = torch.randn(batch.shape, generator=torch.Generator().manual_seed(0)).to(batch)
    alive = _alive_without_variance(teacher, layers, noise)
    if alive:
        name, channel, found = alive[0]
        raise InvalidInput.at(
            "/weights",
            f"{name}.running_var[{channel}] is zero, as of a dead channel, but on noise its input has a variance of "
            f"{found:.3g}: the statistics are not those of these weights",
        )


def _alive_without_variance(
    teacher: nn.Module, layers: list[tuple[str, BatchNorm]], x: Tensor
) -> list[tuple[str, int, float]]:
    """Channels with a running variance of zero whose input varies by more than ε: layer, number, variance on x."""
    found: list[tuple[str, int, float]] = []

    def look(name: str, layer: BatchNorm, values: Tensor) -> None:
        variance = values.transpose(0, 1).flatten(1).var(dim=1, correction=0)
        alive = (cast(Tensor, layer.running_var) == 0) & (variance > layer.eps)
        found.extend((name, channel, variance[channel].item()) for channel in alive.nonzero()[:, 0].tolist())

    handles = [
        layer.register_forward_pre_hook(lambda module, inputs, name=name: look(name, module, inputs[0]))
        for name, layer in layers
        if (cast(Tensor, layer.running_var) == 0).any()
    ]
    if not handles:
        return found
    try:
        with torch.no_grad():
            teacher(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def batch_norm_layers(model: nn.Module) -> list[tuple[str, BatchNorm]]:
    """All 2-d BatchNorm layers with running statistics, with their names, in order of registration.

    BatchNorm2d, its subclasses (timm's BatchNormAct2d) and SyncBatchNorm count, each module once.
    """
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, BatchNorm) and module.running_mean is not None and module.running_var is not None
    ]


def features_and_logits(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled penultimate features (B, D) and logits (B, num_classes) of x (B, C, H, W), from one forward.

    The features are what the classifier is given, whatever the family does between its last stage and there, so that
    the logits are those of `model(x)` by construction.
    """
    features: list[Tensor] = []

    def keep_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        features.append(inputs[0])

    handle = _classifier(model).register_forward_pre_hook(keep_input)
    try:
        logits: Tensor = model(x)
    finally:
        handle.remove()
    return features[-1].flatten(1), logits


class TraceableFeatures:
    """`features_and_logits` as torch.compile can trace it: it follows a hook, but cannot set one.

    Args:
        model: gets a hook for good, which does nothing but while it is traced: give a copy.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._features: list[Tensor] = []
        features = self._features  # the hook must not hold what holds the model

        def keep_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if torch.compiler.is_compiling():
                features.append(inputs[0])

        _classifier(model).register_forward_pre_hook(keep_input)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits, as of `features_and_logits`."""
        if not torch.compiler.is_compiling():
            return features_and_logits(self._model, x)
        logits: Tensor = self._model(x)
        features = self._features[-1]
        self._features.clear()
        return features.flatten(1), logits


def _classifier(model: nn.Module) -> nn.Module:
    classifier = model.get_classifier()  # type: ignore[operator]  # timm's convention, not nn.Module's
    if isinstance(classifier, tuple):  # a distilled model has two heads on features of the same place
        classifier = classifier[0]
    return cast(nn.Module, classifier)


def _create(spec: TeacherSpec, **model_args: Any) -> nn.Module:
    model: nn.Module = timm.create_model(
        spec.architecture, pretrained=False, num_classes=spec.num_classes, in_chans=spec.in_chans, **model_args
    )
    return model


def _known_arguments(spec: TeacherSpec) -> str:
    """What was probably meant by those arguments that the architecture's class does not have."""
    known = inspect.signature(type(_create(spec)).__init__).parameters
    unknown = [name for name in spec.model_args if name not in known]
    return "".join(_did_you_mean(name, known) for name in unknown)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.7)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _tensor_shapes(weights: Path) -> dict[str, list[int]]:
    try:
        with safetensors.safe_open(weights, framework="pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise InvalidInput.at(
            "/weights",
            f"not a safetensors file ({error}): save the teacher's state_dict() with safetensors.torch.save_file",
        ) from error


def _require_fit(spec: TeacherSpec, teacher: nn.Module, shapes: dict[str, list[int]]) -> None:
    wanted = {name: list(tensor.shape) for name, tensor in teacher.state_dict().items()}
    misfits = {
        "missing": [name for name in wanted if name not in shapes],
        "unexpected": [name for name in shapes if name not in wanted],
        "of another shape": [
            f"{name} is {tuple(shapes[name])}, not {tuple(shape)}"
            for name, shape in wanted.items()
            if name in shapes and shapes[name] != shape
        ],
    }
    found = [
        f"{kind}: {', '.join(names[:5])}" + f" and {len(names) - 5} more" * (len(names) > 5)
        for kind, names in misfits.items()
        if names
    ]
    if found:
        model = f"{spec.architecture} with num_classes={spec.num_classes}, in_chans={spec.in_chans}"
        if spec.model_args:
            model += f", model_args={spec.model_args}"
        raise InvalidInput.at("/weights", f"they do not fit {model}; {'; '.join(found)}")
