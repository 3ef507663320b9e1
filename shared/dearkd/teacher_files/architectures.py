"""An index of timm's architectures with BatchNorm, by two figures that no name, channel or class changes.

Building all of timm's networks takes minutes, even without memory; looking up which few of them a file could be takes
none. The index is `architectures.json`; `python -m dearkd.teacher_files.architectures` writes it anew for the timm that
is installed. A network that it lacks is found by its name alone.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import dearkd.vision  # noqa: F401  # makes timm importable

# isort: split
import timm
from torch import Tensor

from dearkd.errors import InvalidInput
from dearkd.specs import TeacherSpec
from dearkd.vision.teachers import blueprint
from dearkd.vision.weight_files import is_counter

INDEX = Path(__file__).with_name("architectures.json")


@dataclass(frozen=True, slots=True)
class Figures:
    """The number of a network's tensors without counters, and of all channels of its BatchNorm layers."""

    tensors: int
    channels: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Figures":
        """The figures of a `state_dict()`, whatever its tensors are called before their last dot."""
        return cls(
            tensors=sum(not is_counter(name) for name in tensors),
            channels=sum(len(t) for name, t in tensors.items() if name.endswith("running_mean") and t.dim() == 1),
        )

    def distance(self, other: "Figures") -> float:
        """The difference in either, as a share of it."""
        return abs(self.tensors - other.tensors) / self.tensors + abs(self.channels - other.channels) / self.channels


def with_figures(figures: Figures) -> list[str]:
    """Names of the architectures with these figures that the installed timm has."""
    return [name for name, found in _index().items() if found == figures]


def nearest(figures: Figures, count: int) -> list[str]:
    """Names of the architectures whose figures differ least."""
    ranked = sorted(_index(), key=lambda name: (_index()[name].distance(figures), len(name), name))
    return ranked[:count]


@cache
def _index() -> dict[str, Figures]:
    stored = json.loads(INDEX.read_text(encoding="utf-8"))["architectures"]
    return {name: Figures(*figures) for name, figures in stored.items() if timm.is_model(name)}


def figures_of(architecture: str) -> Figures:
    """The figures of an architecture, which is built without memory. About 0.2 s.

    Raises:
        InvalidInput: if timm cannot build it.
    """
    spec = TeacherSpec(
        name="index",
        architecture=architecture,
        num_classes=1000,
        in_chans=3,
        image_size=224,
        mean=[0.5] * 3,
        std=[1.0] * 3,
    )
    return Figures.of(blueprint(spec, 10_000))


def main() -> None:
    """Write the index for the installed timm."""
    lines = []
    for name in timm.list_models():
        try:
            figures = figures_of(name)
        except InvalidInput as error:
            print(f"left out: {error.message}")
            continue
        if figures.channels:
            lines.append(f"    {json.dumps(name)}: [{figures.tensors}, {figures.channels}]")
    body = ",\n".join(lines)
    INDEX.write_text(
        f'{{\n  "timm": "{timm.__version__}",\n  "architectures": {{\n{body}\n  }}\n}}\n', encoding="utf-8"
    )


if __name__ == "__main__":
    main()
