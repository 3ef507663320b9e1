"""The bench of a teacher's check: images, answers to them in the settings that are tried, and figures of these."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import dearkd.vision  # noqa: F401  # makes timm importable

# isort: split
import torch
from torch import Tensor, nn

from dearkd.choices import ClassOrder
from dearkd.specs import TeacherSpec
from dearkd.specs.class_order import sorted_by
from dearkd.vision.calibration import expected_calibration_error
from dearkd.vision.image_sample import ImageSample
from dearkd.vision.images import to_input
from dearkd.vision.teachers import load_teacher

PIXELS_AT_ONCE = 2**22
"""The most numbers in a batch's input."""
IMAGES_AT_ONCE = 256


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


@dataclass(frozen=True, slots=True)
class Setting:
    """Everything about the input of a network that may be wrong."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    architecture: str
    order: ClassOrder | None = None
    swapped: bool = False
    own_size: bool = False
    """True where it sees the images in their own size, which is smaller."""


@dataclass(slots=True)
class Bench:
    """The images, and the answers to them in the settings that were tried."""

    spec: TeacherSpec
    weights: Path
    sample: ImageSample
    device: torch.device
    on_answers: Callable[[int], None]
    networks: dict[str, nn.Module] = field(default_factory=dict)
    known: dict[Setting, Tensor] = field(default_factory=dict)

    def network(self, architecture: str) -> nn.Module:
        if architecture not in self.networks:
            spec = self.spec.model_copy(update={"architecture": architecture})
            self.networks[architecture] = load_teacher(spec, self.weights, self.device)
        return self.networks[architecture]

    def pixels(self, setting: Setting) -> Tensor:
        """(N, C, S, S), uint8: of the teacher's size, or the images' own."""
        if not setting.own_size:
            return self.sample.pixels
        assert self.sample.own_pixels is not None
        return self.sample.own_pixels

    @torch.inference_mode()
    def logits(self, setting: Setting) -> Tensor:
        """(N, num_classes), float32, on the CPU. The order of labels makes no difference to them."""
        setting = replace(setting, order=None)
        if setting not in self.known:
            network = self.network(setting.architecture)
            spec = self.spec.model_copy(update={"mean": list(setting.mean), "std": list(setting.std)})
            pixels = self.pixels(setting)
            at_once = max(1, min(IMAGES_AT_ONCE, PIXELS_AT_ONCE // pixels[0].numel()))
            parts = []
            for part in pixels.split(at_once):
                # Mean and std are those of the network's own channels, as its code has them.
                inputs = to_input((part.flip(1) if setting.swapped else part).to(self.device), spec)
                parts.append(network(inputs).float().cpu())
                self.on_answers(len(part))
            # Input that it was never made for may lead out of the finite numbers, which JSON has not.
            self.known[setting] = torch.cat(parts).nan_to_num()
        return self.known[setting]

    def own_normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the images, a number a channel."""
        pixels = self.sample.pixels.transpose(0, 1).flatten(1).float() / 255
        mean, std = pixels.mean(1).tolist(), pixels.std(1).clamp(min=0.001).tolist()
        return tuple(round(value, 4) for value in mean), tuple(round(value, 4) for value in std)

    def class_names(self, setting: Setting) -> Sequence[str]:
        """The names in the order of labels. Raises `ValueError` where that is by number, and a name is none."""
        names = self.sample.class_names
        return names if setting.order is None else sorted_by(setting.order, names)

    def labels(self, setting: Setting) -> Tensor:
        places = {name: label for label, name in enumerate(self.class_names(setting))}
        return torch.tensor([places[name] for name in self.sample.class_names])[self.sample.labels]

    def figures(self, setting: Setting) -> Figures:
        return figures_of(self.logits(setting), self.labels(setting))

    def is_right(self, setting: Setting) -> Tensor:
        """(N,), by top-1."""
        return self.logits(setting).argmax(1) == self.labels(setting)


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
