"""Any CNN as a teacher: what timm's networks say of themselves is found by watching one forward of the module."""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from dearkd.errors import InvalidInput, reason

Call = tuple[str, nn.Module, Any]
"""A module that was called: its path, itself, and what it answered."""


class ModuleTeacher(nn.Module):
    """A network of no library with the parts of timm's interface that a teacher needs.

    The classifier is the last linear layer (or 1×1 convolution) whose answers are the logits; the intermediates are the
    last map of each resolution. Both are found by one forward, and kept by name, so that a copy has its own.

    Its `state_dict` is that of the module itself: weights go in and out under the module's own names.

    Args:
        module: takes (B, in_chans, H, W), normalised, and answers with logits (B, num_classes); in eval mode. It keeps
            its weights where they are.
        in_chans: channels of its input.
        image_size: side of its input, in pixels.

    Raises:
        InvalidInput: at `/architecture`, if it is in training mode, cannot take such an image, answers with anything
            else than one tensor of logits, has no classifier that is called once, or no maps.
    """

    def __init__(self, module: nn.Module, *, in_chans: int, image_size: int) -> None:
        super().__init__()
        self.module = module
        self._classifier, self._stages = _watch(module, in_chans, image_size)
        self.train(module.training)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.module(x)
        return logits

    def get_classifier(self) -> nn.Module:
        """The layer whose input is the features, and whose output is the logits."""
        return self.module.get_submodule(self._classifier)

    def forward_intermediates(
        self, x: Tensor, indices: Sequence[int] | None = None, *, intermediates_only: bool = False
    ) -> Any:
        """The logits and the last maps of some resolutions, finest first, as timm's networks give their features.

        Args:
            x: (B, in_chans, H, W), normalised.
            indices: of the resolutions, ascending; None: all.
            intermediates_only: give the maps alone.

        Returns:
            The logits (B, num_classes), which `forward_head` passes on, and the maps, (B, C, h, w) each.
        """
        wanted = list(range(len(self._stages))) if indices is None else list(indices)
        maps: dict[int, Tensor] = {}
        with ExitStack() as hooks:
            for index in wanted:
                stage = self.module.get_submodule(self._stages[index])
                handle = stage.register_forward_hook(
                    lambda _, inputs, output, index=index: maps.__setitem__(index, output)
                )
                hooks.callback(handle.remove)
            logits = self.module(x)
        found = [maps[index] for index in wanted]
        return found if intermediates_only else (logits, found)

    def forward_head(self, x: Tensor) -> Tensor:
        """The logits of what `forward_intermediates` gives, which are the logits."""
        return x

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # its overloads are passed on
        """The module's own, under its own names."""
        found: dict[str, Any] = self.module.state_dict(*args, **kwargs)
        return found

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load the module's own, under its own names."""
        return self.module.load_state_dict(*args, **kwargs)


def as_teacher(module: nn.Module, *, in_chans: int, image_size: int) -> nn.Module:
    """The module itself where it has timm's interface, else a `ModuleTeacher` around it.

    Raises:
        InvalidInput: see `ModuleTeacher`.
    """
    parts = ("get_classifier", "forward_intermediates", "forward_head")
    if all(hasattr(module, part) for part in parts):
        return module
    return ModuleTeacher(module, in_chans=in_chans, image_size=image_size)


def _watch(module: nn.Module, in_chans: int, image_size: int) -> tuple[str, list[str]]:
    """Names of the classifier, and of the last module of each resolution, finest first."""
    name = type(module).__name__
    if module.training:
        raise InvalidInput.at("/architecture", f"{name} is in training mode: call eval() on it")
    calls: list[Call] = []
    like = next((tensor for tensor in module.parameters() if tensor.is_floating_point()), torch.zeros(()))
    image = torch.linspace(-1, 1, in_chans * image_size**2, dtype=like.dtype, device=like.device)
    with ExitStack() as hooks, torch.no_grad():
        for path, part in module.named_modules():
            if path:
                handle = part.register_forward_hook(
                    lambda part, inputs, output, path=path: calls.append((path, part, output))
                )
                hooks.callback(handle.remove)
        try:
            logits = module(image.view(1, in_chans, image_size, image_size))
        except Exception as error:  # what a network raises on a size is its own affair
            raise InvalidInput.at(
                "/architecture",
                f"{name} cannot take an image of {in_chans}×{image_size}×{image_size}: {reason(error)}",
            ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        shown = f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise InvalidInput.at(
            "/architecture",
            f"{name} answers an image with {shown}, and a teacher with logits (B, num_classes): wrap it in a module "
            "that returns them alone",
        )
    return _find_classifier(name, calls, logits), _find_stages(name, calls)


def _find_classifier(name: str, calls: Sequence[Call], logits: Tensor) -> str:
    for path, part, output in reversed(calls):
        linear = isinstance(part, nn.Linear) or (isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1))
        if not linear or not isinstance(output, Tensor) or output.shape[1:2] != logits.shape[1:]:
            continue
        if sum(called == path for called, _, _ in calls) > 1:
            break
        return path
    raise InvalidInput.at(
        "/architecture",
        f"{name} has no linear layer or 1×1 convolution, called once, that answers with {logits.shape[1]} logits: its "
        "features cannot be found; give it a method get_classifier() that returns the last layer, and timm's "
        "forward_intermediates and forward_head",
    )


def _find_stages(name: str, calls: Sequence[Call]) -> list[str]:
    times = Counter(path for path, _, _ in calls)
    last: dict[int, str] = {}
    for path, _, output in calls:
        if not isinstance(output, Tensor) or output.ndim != 4 or not 1 < output.shape[2] <= min(last, default=2**31):
            continue  # also what makes maps larger again, as VGG's pooling to 7×7 does of small images
        # Of a module that is called again, as one ReLU for a whole block is, the last call's map would be taken.
        if times[path] == 1:
            last[output.shape[2]] = path
    stages = [path for _, path in sorted(last.items(), reverse=True)]
    if not stages:
        raise InvalidInput.at("/architecture", f"{name} gives no maps (B, C, H, W) of several places: is it a CNN?")
    return stages
