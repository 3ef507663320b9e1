"""Arms of the comparison with real images: names, images and controls, and a teacher with other statistics."""

import copy
import re
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, get_args

import torch
from arms import Network, in_turn
from tasks import Task, fashion, fashion_test, task
from torch import Tensor, nn

from dearkd.specs import SynthesisSpec, TeacherSpec
from dearkd.vision.images import quantise, to_input
from dearkd.vision.teachers import batch_norm_layers

Kind = Literal["real", "ours", "noise", "uniform", "shuffled"]
VALIDATION = 5_000
STATISTICS_BATCH = 128
"""The fewest images of a batch whose statistics are taken, where there are so many."""


@dataclass(frozen=True)
class Arm:
    """A student's images, and what differs from the defaults in making them and in its training."""

    name: str
    images: Kind
    synthesis: dict[str, Any] = field(default_factory=dict)
    """Fields of the synthesis spec; of `shuffled` too, whose images are made first."""
    training: dict[str, Any] = field(default_factory=dict)
    """Fields of the training spec."""
    teacher_statistics: Literal["own", "images"] = "own"
    """`images`: the teacher that labels has BatchNorm statistics of these images in place of its own."""
    passes: int | None = None
    """Teacher passes an image; by default those of the spec."""
    count: int | None = None
    """Images, where the arm has another number than the others."""
    epochs: int | None = None
    """Likewise."""
    patch: int = 8
    """Pixels of a side of what `shuffled` shuffles."""

    @property
    def is_made(self) -> bool:
        return self.images in ("ours", "shuffled")


PUBLISHED = {"preset": "published-cifar", "phases": [{"resolution": 32, "input_size": 32, "iterations": 200}]}
STILL = {"degrees": 0.0, "shear": 0.0, "translate": 0.0}
FINE = [
    {"resolution": 16, "input_size": 32, "iterations": 150},
    {"resolution": 32, "input_size": 32, "iterations": 50},
]
ARMS: dict[str, dict[str, Any]] = {
    "real": {"images": "real"},
    "ours": {"images": "ours"},
    "pixels": {"images": "ours", "synthesis": {"generator": None}},
    "published": {"images": "ours", "synthesis": PUBLISHED},
    "noise": {"images": "noise"},
    "uniform": {"images": "uniform"},
    "shuffled": {"images": "shuffled"},
    "shuffled4": {"images": "shuffled", "patch": 4},
    **{f"boundary-{w}": {"images": "ours", "synthesis": {"weights": {"boundary": float(w)}}} for w in (0, 1, 3, 10)},
    **{
        f"statistics-{w}": {"images": "ours", "synthesis": {"weights": {"batch_norm": float(w)}}}
        for w in (3, 5, 20, 30, 100)
    },
    **{f"variation-{w}": {"images": "ours", "synthesis": {"weights": {"total_variation_l2": w}}} for w in (0.1, 1.0)},
    "restated": {"images": "ours", "teacher_statistics": "images"},
    "still": {"images": "ours", "training": {"augmentation": STILL}},
    "real-still": {"images": "real", "training": {"augmentation": STILL}},
    "strong": {"images": "ours", "training": {"augmentation": {"degrees": 30.0, "shear": 10.0, "translate": 0.2}}},
    "crops": {"images": "ours", "training": {"augmentation": {"scale": [0.5, 1.0], "ratio": [0.75, 1.333]}}},
    "fine": {"images": "ours", "synthesis": {"phases": FINE}},
    "earlier": {"images": "ours", "synthesis": {"init": "earlier_batch"}},
    "draft": {"images": "ours", "synthesis": {"preset": "draft"}},
}


def arm_named(name: str, known: dict[str, dict[str, Any]]) -> Arm:
    """An arm by its name, which may end in its teacher passes an image: `ours`, `ours-20`, `boundary-3-20`.

    Raises:
        ValueError: if there is none, or a field of it is unknown.
    """
    passes = None
    if name not in known and (parts := re.fullmatch(r"(.+)-([1-9]\d*)", name)) and parts[1] in known:
        name, passes = parts[1], int(parts[2])
    if name not in known:
        raise ValueError(f"{name}: there is no such arm; known are {', '.join(known)}, and NAME-PASSES of those made")
    fields = known[name]
    if unknown := fields.keys() - Arm.__dataclass_fields__.keys() or {"name"} & fields.keys():
        raise ValueError(f"{name}: {', '.join(sorted(unknown))}: fields of an arm are {', '.join(ARM_FIELDS)}")
    if fields.get("images") not in get_args(Kind):
        raise ValueError(f"{name}: images is {fields.get('images')!r}, and must be one of {', '.join(get_args(Kind))}")
    arm = Arm(name=name, **fields)
    if passes is not None and not arm.is_made:
        raise ValueError(f"{name}-{passes}: its images cost no teacher passes")
    return replace(arm, passes=passes or arm.passes)


ARM_FIELDS = [name for name in Arm.__dataclass_fields__ if name != "name"]


def with_passes(posted: dict[str, Any], teacher: TeacherSpec, passes: int | None) -> SynthesisSpec:
    """The spec of a request, its phases, warm-up and iterations without labels scaled to so many passes an image."""
    spec = SynthesisSpec.resolve({"teacher": "teacher"} | posted, teacher)
    whole = sum(phase.iterations for phase in spec.phases)
    if passes is None or passes == whole:
        return spec
    if passes < len(spec.phases):
        raise ValueError(f"{passes} passes are fewer than the {len(spec.phases)} phases: give each at least one")
    ends, end = [0], 0
    for number, phase in enumerate(spec.phases):
        end += phase.iterations
        left = len(spec.phases) - number - 1
        ends.append(min(max(round(end * passes / whole), ends[-1] + 1), passes - left))
    phases = [
        phase.model_dump() | {"iterations": stop - start}
        for phase, start, stop in zip(spec.phases, ends, ends[1:], strict=False)
    ]
    scaled = {
        "phases": phases,
        "warmup_iterations": spec.warmup_iterations * passes // whole,
        "unlabelled_iterations": spec.unlabelled_iterations * passes // whole,
    }
    return SynthesisSpec.resolve({"teacher": "teacher"} | posted | scaled, teacher)


def merged(one: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """One JSON object with the fields of another over it, at every depth."""
    both = one | over
    for name in one.keys() & over.keys():
        if isinstance(one[name], dict) and isinstance(over[name], dict):
            both[name] = merged(one[name], over[name])
    return both


def parts_of(name: str, *, final: bool) -> Task:
    """A task that is judged by a part of its training images, which are none of its own, or at the end by its test's.

    The training images are the same in both cases. `fashion` cuts such a part itself, its last 10,000. Of the others it
    is the last fifth of each class, 5,000 at most in all: of photographs crops from the cells of training.
    """
    if name == "fashion":
        whole = fashion()
        if not final:
            return whole
        images, labels = fashion_test()
        return replace(whole, held_out_images=images, held_out_labels=labels)
    whole = task(name)
    order = in_turn(whole.labels)
    kept = len(order) - min(VALIDATION, len(order) // 5)
    rest, held = order[:kept].sort().values, order[kept:]
    cut = replace(whole, images=whole.images[rest], labels=whole.labels[rest])
    if final:
        return cut
    return replace(cut, held_out_images=whole.images[held], held_out_labels=whole.labels[held])


def noise(kind: Kind, count: int, teacher: TeacherSpec, seed: int) -> Tensor:
    """(count, C, H, W), uint8: `noise` is normal in the teacher's normalised space, `uniform` in pixels."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, teacher.in_chans, teacher.image_size, teacher.image_size)
    if kind == "uniform":
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return quantise(torch.randn(shape, generator=generator), teacher)


def shuffled_patches(images: Tensor, patch: int, seed: int) -> Tensor:
    """Images (N, C, H, W) whose patches have changed places, in each image in another way."""
    count, channels, height, width = images.shape
    if height % patch or width % patch:
        raise ValueError(f"patches of {patch} px do not fill {height}×{width} px: give a divisor of both")
    rows, columns = height // patch, width // patch
    cut = images.reshape(count, channels, rows, patch, columns, patch).permute(0, 2, 4, 1, 3, 5)
    flat = cut.reshape(count, rows * columns, channels, patch, patch)
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(count, rows * columns, generator=generator).argsort(dim=1)
    moved = flat[torch.arange(count)[:, None], order]
    back = moved.reshape(count, rows, columns, channels, patch, patch).permute(0, 3, 1, 4, 2, 5)
    return back.reshape(count, channels, height, width)


def restated(teacher: Network, images: Tensor, seed: int) -> Network:
    """A copy of the teacher with BatchNorm statistics of these images (uint8, unchanged) in place of its own.

    Of batches of at least 128 images, drawn from all, the mean of the batches' statistics (`momentum=None`).
    """
    model = copy.deepcopy(teacher.model).eval()
    layers = cast(list[tuple[str, nn.BatchNorm2d]], batch_norm_layers(model))
    momenta = [layer.momentum for _, layer in layers]
    for _, layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for batch in order.chunk(max(1, len(order) // STATISTICS_BATCH)):
            model(to_input(images[batch], teacher.spec))
    for (_, layer), momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    return Network(model.eval(), teacher.spec)
