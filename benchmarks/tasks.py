"""Tasks with real sources that neither teacher nor synthesis sees: digits, and drawn objects in unseen styles."""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dearkd_trainer.demo.digits import real_digits

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

SIDE = 32
SUPERSAMPLING = 3

SEEN = (["plain", "shaded", "stripes"], ["plain", "shaded", "noise", "waves"])
"""Textures of objects and of the grounds below them, in training."""
UNSEEN = (["dots"], ["chequers"])
"""The same, held out."""


@dataclass(frozen=True)
class Task:
    """Images (N, C, 32, 32), uint8, and labels (N,), to train CNNs on and to judge by."""

    name: str
    class_names: list[str]
    images: Tensor
    labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor
    synthesis: dict[str, Any] = field(default_factory=dict)
    """Fields of the synthesis spec that go with it."""

    @property
    def in_chans(self) -> int:
        return self.images.shape[1]


def task(name: str) -> Task:
    return {"digits": digits, "objects": objects}[name]()


def digits() -> Task:
    """scikit-learn's handwritten digits in the demo's split."""
    train, held_out = real_digits()
    return Task("digits", [str(d) for d in range(10)], train.images, train.labels, held_out.images, held_out.labels)


def objects(*, train_per_class: int = 120, held_out_per_class: int = 25, seed: int = 0) -> Task:
    """24 drawn shapes in colour: held out are shapes with textures and backgrounds that training never has.

    Training draws plain, shaded or striped shapes on plain, shaded, noisy or wavy grounds; held-out ones are dotted on
    chequered grounds. Each class has a hue, which it shares with two others: neither colour nor shape alone names it.
    Place, size, angle, brightness and the ground's colour are random in both.
    """
    generator = np.random.default_rng(seed)
    train = [(draw(shape, generator, seen=True), i) for i, shape in enumerate(SHAPES) for _ in range(train_per_class)]
    held = [
        (draw(shape, generator, seen=False), i) for i, shape in enumerate(SHAPES) for _ in range(held_out_per_class)
    ]
    stacked = [torch.stack([image for image, _ in part]) for part in (train, held)]
    labels = [torch.tensor([label for _, label in part]) for part in (train, held)]
    # A mirrored half disc is another class.
    return Task("objects", list(SHAPES), stacked[0], labels[0], stacked[1], labels[1], {"flip": 0.0})


def draw(shape: str, generator: np.random.Generator, *, seen: bool) -> Tensor:
    """One object (3, 32, 32), uint8, in a style that training has (`seen`) or in one that it has not."""
    n = SIDE * SUPERSAMPLING
    y, x = np.mgrid[0:n, 0:n] / (n - 1) * 2 - 1
    angle, size = np.deg2rad(generator.uniform(-12, 12)), generator.uniform(0.6, 0.95)
    dx, dy = generator.uniform(-0.15, 0.15, 2)
    u = ((x - dx) * np.cos(angle) + (y - dy) * np.sin(angle)) / size
    v = (-(x - dx) * np.sin(angle) + (y - dy) * np.cos(angle)) / size
    mask = SHAPES[shape](u, v)[..., None]
    ground, object_ = _colours(generator, HUES[shape])
    texture, below = (generator.choice(kinds) for kinds in (SEEN if seen else UNSEEN))
    image = np.where(mask, object_ * _pattern(texture, x, y, generator), ground * _pattern(below, x, y, generator))
    small = image.reshape(SIDE, SUPERSAMPLING, SIDE, SUPERSAMPLING, 3).mean((1, 3))
    small += generator.normal(0, 0.02, small.shape)
    return torch.from_numpy((small.clip(0, 1) * 255).round().astype(np.uint8)).permute(2, 0, 1).contiguous()


def _colours(generator: np.random.Generator, hue: float) -> tuple[Array, Array]:
    """Any colour for the ground and one near the hue for the object, whose brightness differs enough to see it."""
    dark, bright = generator.uniform(0.1, 0.35), generator.uniform(0.7, 1.0)
    below, above = (dark, bright) if generator.random() < 0.5 else (bright, dark)
    near = (hue + generator.normal(0, 0.03)) % 1
    ground = colorsys.hsv_to_rgb(generator.random(), generator.uniform(0.2, 0.7), below)
    return np.array(ground), np.array(colorsys.hsv_to_rgb(near, generator.uniform(0.5, 0.9), above))


def _pattern(kind: str, x: Array, y: Array, generator: np.random.Generator) -> Array:
    """What a colour is multiplied by, (H, W, 1), between 0.6 and 1."""
    turn, phase = generator.uniform(0, 2 * np.pi, 2)
    along, across = x * np.cos(turn) + y * np.sin(turn), -x * np.sin(turn) + y * np.cos(turn)
    frequency = generator.uniform(8, 12)
    depth: Array
    if kind == "plain":
        depth = np.zeros_like(x)
    elif kind == "shaded":
        depth = (along + 1.5) / 3
    elif kind == "noise":
        depth = generator.random(x.shape)
    elif kind == "stripes":
        depth = (np.sin(frequency * along + phase) > 0).astype(float)
    elif kind == "dots":
        depth = ((np.sin(frequency * along) * np.sin(frequency * across)) > 0.3).astype(float)
    elif kind == "chequers":
        depth = ((np.sin(frequency * along + phase) * np.sin(frequency * across)) > 0).astype(float)
    else:
        depth = 0.5 + 0.5 * np.sin(frequency * along + 2 * np.sin(4 * across) + phase)
    return (1 - 0.4 * depth.clip(0, 1))[..., None]


def _radius(u: Array, v: Array) -> Array:
    return np.hypot(u, v)


def _square(u: Array, v: Array) -> Array:
    return np.maximum(np.abs(u), np.abs(v))


def _star(points: int) -> Callable[[Array, Array], Mask]:
    def inside(u: Array, v: Array) -> Mask:
        return _radius(u, v) < 0.55 + 0.3 * np.cos(points * np.arctan2(u, -v))

    return inside


SHAPES: dict[str, Callable[[Array, Array], Mask]] = {
    "disc": lambda u, v: _radius(u, v) < 0.8,
    "ring": lambda u, v: (_radius(u, v) < 0.85) & (_radius(u, v) > 0.5),
    "square": lambda u, v: _square(u, v) < 0.7,
    "frame": lambda u, v: (_square(u, v) < 0.8) & (_square(u, v) > 0.5),
    "diamond": lambda u, v: np.abs(u) + np.abs(v) < 0.9,
    "triangle up": lambda u, v: (v < 0.65) & (np.abs(u) < (v + 0.85) / 1.7),
    "triangle down": lambda u, v: (v > -0.65) & (np.abs(u) < (0.85 - v) / 1.7),
    "plus": lambda u, v: (np.minimum(np.abs(u), np.abs(v)) < 0.2) & (_square(u, v) < 0.85),
    "cross": lambda u, v: (np.minimum(np.abs(u + v), np.abs(u - v)) < 0.28) & (_radius(u, v) < 0.9),
    "bar": lambda u, v: (np.abs(v) < 0.25) & (np.abs(u) < 0.9),
    "post": lambda u, v: (np.abs(u) < 0.25) & (np.abs(v) < 0.9),
    "two bars": lambda u, v: (np.abs(np.abs(v) - 0.5) < 0.2) & (np.abs(u) < 0.85),
    "two posts": lambda u, v: (np.abs(np.abs(u) - 0.5) < 0.2) & (np.abs(v) < 0.85),
    "dome": lambda u, v: (_radius(u, v - 0.4) < 0.9) & (v < 0.4),
    "bowl": lambda u, v: (_radius(u, v + 0.4) < 0.9) & (v > -0.4),
    "moon": lambda u, v: (_radius(u, v) < 0.85) & (_radius(u - 0.4, v) > 0.65),
    "star": _star(5),
    "clover": _star(4),
    "flower": _star(8),
    "wedge": lambda u, v: (_radius(u, v) < 0.85) & ~((u > 0) & (np.abs(v) < u)),
    "angle": lambda u, v: (_square(u, v) < 0.8) & ((u < -0.4) | (v > 0.4)),
    "tee": lambda u, v: (_square(u, v) < 0.8) & ((v < -0.4) | (np.abs(u) < 0.2)),
    "cup": lambda u, v: (_square(u, v) < 0.8) & ((np.abs(u) > 0.45) | (v > 0.4)),
    "hourglass": lambda u, v: (_square(u, v) < 0.8) & (np.abs(u) < np.abs(v)),
}
"""Inside or outside of each class's shape, in coordinates of [-1, 1], v downwards."""

HUES = {shape: number % 8 / 8 for number, shape in enumerate(SHAPES)}
