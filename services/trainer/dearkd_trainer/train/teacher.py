"""The teacher of a run: a frozen CNN, asked for logits and early feature maps in one forward."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dearkd.errors import InvalidInput
from dearkd.specs import Task, TeacherSpec

Moments = tuple[Tensor, Tensor]
"""Mean and variance of each channel, (C,) each."""


@dataclass(frozen=True, slots=True)
class Stage:
    """An intermediate feature map of a teacher."""

    index: int
    """In timm's `forward_intermediates`."""
    channels: int
    height: int
    width: int
    stride: int
    """Input pixels to a step on the map, rounded."""


@dataclass(frozen=True, slots=True)
class FrozenTeacher:
    """A timm CNN that a student learns from, and the spec of its inputs and classes."""

    module: nn.Module
    spec: TeacherSpec

    def prepared(self, task: Task, device: torch.device) -> "FrozenTeacher":
        """The same teacher, frozen, in eval mode and on the device, once it is known to do the task.

        Raises:
            InvalidInput: at `/teacher`, if its spec is of another task, or the network is not its spec's.
        """
        spec = self.spec
        for field in ("num_classes", "in_chans", "mean", "std"):
            if (theirs := getattr(spec, field)) != (ours := getattr(task, field)):
                raise InvalidInput.at("/teacher", f"its {field} is {theirs}, the student's {ours}: they must be equal")
        module = self.module.eval().requires_grad_(False).to(device)
        name, shape = type(module).__name__, (1, spec.in_chans, spec.image_size, spec.image_size)
        like = next(module.parameters())
        try:
            with torch.no_grad():
                logits = module(like.new_zeros(shape))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # what a network raises on other channels or another size is its own affair
            raise InvalidInput.at(
                "/teacher", f"{name} cannot take a batch of shape {shape}, as its spec says: {error}"
            ) from error
        if tuple(logits.shape) != (1, task.num_classes):
            raise InvalidInput.at(
                "/teacher",
                f"{name} answers an image with a tensor of shape {tuple(logits.shape)}, but its spec has "
                f"{task.num_classes} classes: give the teacher of that spec",
            )
        # torch's own stubs lack this signature of Module.to.
        return FrozenTeacher(module.to(memory_format=torch.channels_last), spec)  # type: ignore[call-overload]

    @torch.no_grad()
    def stages(self) -> list[Stage]:
        """The feature maps that `forward_intermediates` gives for one image, found by a trial forward.

        Raises:
            InvalidInput: if the architecture has no `forward_intermediates` or cannot take the size, or its features
                lead to other logits than a plain forward: then hidden distillation would need a second pass.
        """
        module, size = self.module, self.spec.image_size
        name = type(module).__name__
        if not hasattr(module, "forward_intermediates"):
            raise InvalidInput.at(
                "/stage_one/weights/hidden",
                f"{name} has no forward_intermediates, so that its features cannot be read; set it to 0",
            )
        like = next(module.parameters())
        images = torch.linspace(-1, 1, self.spec.in_chans * size**2, device=like.device, dtype=like.dtype)
        images = images.view(1, self.spec.in_chans, size, size)
        try:
            maps: list[Tensor] = module.forward_intermediates(images, intermediates_only=True)  # type: ignore[operator]  # timm's
            shapes = [(channels, height, width) for _, channels, height, width in (one.shape for one in maps)]
            logits, _ = self.forward(images, [0])
            expected = module(images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # what a network raises on a size is its own affair
            raise InvalidInput.at(
                "/stage_one/weights/hidden",
                f"{name} gives no feature maps of an image of {size}×{size} pixels: {error}; use a teacher of that "
                "size, or set it to 0",
            ) from error
        if (logits - expected).abs().max() > 1e-3 * expected.abs().max():
            raise InvalidInput.at(
                "/stage_one/weights/hidden",
                f"{name} does not finish its forward from forward_intermediates; set it to 0",
            )
        return [
            Stage(index, channels, height, width, stride=round(size / height))
            for index, (channels, height, width) in enumerate(shapes)
        ]

    def mirror_agreement(self, images: Tensor) -> float:
        """The share of images that get the same class in a mirror, in [0, 1].

        Args:
            images: (N, in_chans, H, W), normalised; they are taken in small batches.
        """
        same = [
            self.forward(part, [])[0].argmax(1) == self.forward(part.flip(3), [])[0].argmax(1)
            for part in images.split(32)
        ]
        return torch.cat(same).double().mean().item()

    def feature_moments(self, images: Tensor, stages: Collection[int]) -> dict[int, Moments]:
        """Mean and biased variance of each channel of some stages' feature maps, over images and places.

        Args:
            images: (N, in_chans, H, W), normalised; they are taken in small batches.
            stages: indices into `forward_intermediates`.
        """
        indices = sorted(set(stages))
        sums: dict[int, Tensor] = {}
        for part in images.split(32):
            for index, features in zip(indices, self.forward(part, indices)[1], strict=True):
                values = features.double().transpose(0, 1).flatten(1)
                found = torch.stack(
                    [values.sum(1), values.square().sum(1), torch.full_like(values[:, 0], len(values.T))]
                )
                sums[index] = sums[index] + found if index in sums else found
        return {
            index: ((total / count).float(), (squares / count - (total / count).square()).clamp(min=0).float())
            for index, (total, squares, count) in sums.items()
        }

    @torch.no_grad()
    def forward(self, images: Tensor, stages: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, num_classes) and the feature maps of some stages, from one forward without gradients.

        Args:
            images: (B, in_chans, H, W), normalised; resized where they are not of the teacher's size.
            stages: indices into `forward_intermediates`, ascending; without any, a plain forward is made.
        """
        size = self.spec.image_size
        if images.shape[-1] != size:
            images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
        images = images.contiguous(memory_format=torch.channels_last)
        if not stages:
            return self.module(images), []
        last, maps = self.module.forward_intermediates(images, indices=list(stages))  # type: ignore[operator]  # timm's
        return self.module.forward_head(last), maps  # type: ignore[operator]  # timm's
