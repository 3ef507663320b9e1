"""Teachers: from a spec and a safetensors file to a frozen CNN, with every check that can be made at the door."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dearkd.errors import InvalidInput, reason
from dearkd.specs import TeacherSpec
from dearkd.specs.presets import half_size
from dearkd.vision.architectures import create, known_arguments, require_known
from dearkd.vision.bounded_construction import ParametersOnMeta, TooLargeToBuild, bounded_construction
from dearkd.vision.module_teachers import as_teacher
from dearkd.vision.teacher_statistics import BatchNorm, check_statistics, require_possible
from dearkd.vision.weight_files import read_header, require_fit, separate_state

CONVOLUTIONS_A_BATCH_NORM = 4
"""The most convolutions of more than 1×1 for each BatchNorm layer [our choice]. CNNs that are made with BatchNorm have
one or less; a network of which all but a few layers were folded has many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherDescription:
    """The findings about a teacher at its registration."""

    parameters: int
    batch_norm_layers: int
    refused_input_sizes: list[int]
    """Sides of images that it cannot take. Only half its image size is tried, with which presets begin."""


def build_teacher(spec: TeacherSpec) -> nn.Module:
    """The spec's architecture with random weights, in training mode as timm gives it; never downloads any.

    Raises:
        InvalidInput: at `/architecture` or `/model_args`.
    """
    require_known(spec.architecture)
    return _as_teacher(_construct(spec).eval(), spec).train()


def blueprint(spec: TeacherSpec, stored: int) -> dict[str, Tensor]:
    """The network's `state_dict()` with shapes and types alone, built no further than a file could fill it.

    Args:
        spec: how to build it.
        stored: the number of tensors in the file.

    Raises:
        InvalidInput: at `/architecture` or `/model_args` as `build_teacher`; at `/weights` if the network has several
            times as many tensors as the file.
    """
    try:
        with bounded_construction(10_000 + 10 * stored):  # timm's networks register up to 4.3 for each tensor
            try:
                with torch.device("meta"):
                    return _construct(spec).state_dict()
            except InvalidInput:
                with ParametersOnMeta():  # refused again, unless its code only wants numbers in tensors
                    return _construct(spec).state_dict()
    except TooLargeToBuild:
        raise InvalidInput.at(
            "/weights",
            f"they do not fit {in_words(spec)}: that network is several times larger than the file, which holds "
            f"{stored} tensors",
        ) from None


def in_words(spec: TeacherSpec) -> str:
    """The network of a spec, as errors call it."""
    words = f"{spec.architecture} with num_classes={spec.num_classes}, in_chans={spec.in_chans}"
    return words + (f", model_args={spec.model_args}" if spec.model_args else "")


def load_teacher(spec: TeacherSpec, weights: Path, device: torch.device | str = "cpu") -> nn.Module:
    """The teacher with its weights, in eval mode and frozen.

    Args:
        spec: how to build it.
        weights: a safetensors file of exactly the architecture's `state_dict()`, in floating-point types of 16 to 64
            bits; `num_batches_tracked` may be missing.
        device: where to put it.

    Raises:
        InvalidInput: at `/weights`, naming the tensors that are missing, unexpected, of another shape or of another
            type, before any memory is taken for the network; or as `build_teacher`.
    """
    stored = read_header(weights)
    require_known(spec.architecture)
    require_fit(in_words(spec), blueprint(spec, len(stored)), stored)
    teacher = _construct(spec)
    state = teacher.state_dict()
    state.update(load_file(weights))  # in place: a network may look at the versions that hang on its own
    teacher.load_state_dict(state)
    return _as_teacher(teacher.eval(), spec).requires_grad_(False).to(device)


def save_teacher(teacher: nn.Module, weights: Path) -> None:
    """Write a network's weights as `load_teacher` and the API take them: safetensors of its `state_dict()`.

    Unlike `save_file(teacher.state_dict(), …)` it takes networks in channels_last and tied weights.

    Args:
        teacher: on any device.
        weights: the file, which is replaced.
    """
    save_file(separate_state(teacher), weights)


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
        refused_input_sizes=refused_input_sizes(teacher, spec),
    )


def refused_input_sizes(teacher: nn.Module, spec: TeacherSpec) -> list[int]:
    """The half of the image size, if the teacher does not take such images.

    Attention over a map has weights for each place in it, so that such a network takes one size alone; others are left
    with no place.
    """
    half = half_size(spec.image_size)
    try:
        check_teacher(teacher, spec, half)
    except InvalidInput:
        return [half]
    return []


def check_teacher(teacher: nn.Module, spec: TeacherSpec, input_size: int, *, pointer: str = "/image_size") -> None:
    """Check that a teacher can be inverted at this input size.

    Raises:
        InvalidInput: if it is in training mode, has a weight that is not finite or no floating-point number, has no
            BatchNorm layer or one whose statistics cannot be those of its weights (see `check_statistics`), or does not
            answer a batch of (2, in_chans, input_size, input_size) with finite logits of shape (2, num_classes).
    """
    if any(module.training for module in teacher.modules()):
        raise InvalidInput.at("/architecture", "the teacher is in training mode: call eval() on it")
    for name, parameter in teacher.named_parameters():
        if not parameter.is_floating_point() or parameter.dtype.itemsize < 2:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise InvalidInput.at("/weights", f"{name} is of type {kind}: use float32, float16 or bfloat16")
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
    spatial = sum(isinstance(layer, nn.Conv2d) and max(layer.kernel_size) > 1 for layer in teacher.modules())
    if len(layers) * CONVOLUTIONS_A_BATCH_NORM < spatial:
        raise InvalidInput.at(
            "/architecture",
            f"{spec.architecture} has {len(layers)} BatchNorm2d layer(s) for {spatial} convolutions of more than 1×1, "
            f"and images are made from their statistics: one for each {CONVOLUTIONS_A_BATCH_NORM} is the least (was "
            "BatchNorm folded into the convolutions? use the weights as they were before)",
            code="no_batch_norm",
        )
    require_possible(layers)
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
    if input_size == spec.image_size:  # at other sizes activations differ more, in networks that are as they should be
        check_statistics(teacher, layers, spec)


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


def _as_teacher(network: nn.Module, spec: TeacherSpec) -> nn.Module:
    return as_teacher(network, in_chans=spec.in_chans, image_size=spec.image_size)


def _construct(spec: TeacherSpec) -> nn.Module:
    try:
        return create(spec)
    except TooLargeToBuild:
        raise
    except Exception as error:  # an architecture's constructor raises what it likes
        if not spec.model_args:
            raise InvalidInput.at(
                "/architecture", f"{spec.architecture} cannot be built with in_chans={spec.in_chans}: {reason(error)}"
            ) from error
        hint = known_arguments(spec)
        raise InvalidInput.at(
            "/model_args", f"{spec.architecture} does not take {spec.model_args}: {reason(error)}{hint}"
        ) from error
