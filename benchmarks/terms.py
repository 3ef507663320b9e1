"""Pictures of what each setting of the synthesis does: rows of images of one teacher, each with one thing changed.

    python benchmarks/terms.py --folder terms --task fashion --picture docs/settings-fashion.jpg
    python benchmarks/terms.py --folder terms --task digits --picture docs/settings-digits.jpg

Beside each row stand the shares of its images that the teacher and an independent network, which never took part, give
their label. Networks and images are files in the folder, each made once. One seed: of rows that differ by a few points
none is the better one.
"""

import argparse
import hashlib
import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

# isort: split
import matplotlib.pyplot as plt
import torch
from arms import JUDGE, Made, Network, judge_of, network, synthesise
from keeping import kept
from tasks import TASKS, task
from torch import Tensor

from dearkd.specs import SynthesisSpec

PASSES = 200


def changes(spec: SynthesisSpec) -> dict[str, dict[str, Any]]:
    """The changes to the settings of pixels, by what the picture says of each."""
    (phase,), weights = spec.phases, spec.weights
    size = phase.input_size
    variation = weights.total_variation_l1

    def weighed(**changed: float) -> dict[str, Any]:
        return {"weights": weights.model_dump() | changed}

    def phased(**changed: int) -> dict[str, Any]:
        made = phase.model_copy(update=changed)
        return {"phases": [made.model_dump()], "unlabelled_iterations": made.iterations // 4}

    return {
        "the preset auto, of pixels (generator null)": {},
        "20 iterations in place of 200": phased(iterations=20),
        "50 iterations": phased(iterations=50),
        "no statistics (batch_norm 0)": weighed(batch_norm=0.0),
        "a tenth of them (batch_norm 1)": weighed(batch_norm=weights.batch_norm / 10),
        "ten times (batch_norm 100)": weighed(batch_norm=10 * weights.batch_norm),
        "the square of the distance (statistics: gaussian)": {"statistics": "gaussian"},
        "no variation (total_variation_l1 0)": weighed(total_variation_l1=0.0),
        "ten times the variation": weighed(total_variation_l1=10 * variation),
        "no boundary term (boundary 0)": weighed(boundary=0.0),
        "labels from the first step (unlabelled_iterations 0)": {"unlabelled_iterations": 0},
        f"a tensor of {size} px, as the teacher sees": phased(resolution=size),
        "batches of 20 (batch_size 20)": {"batch_size": 20},
        "the preset published-cifar, 200 iterations": {
            "preset": "published-cifar",
            "phases": [{"resolution": size, "input_size": size, "iterations": PASSES}],
        },
    }


def images_of(folder: Path, name: str, teacher: Network, posted: dict[str, Any]) -> Made:
    """The images of one row, made once for the spec that it comes to."""
    asked = SynthesisSpec.resolve({"teacher": "teacher"} | posted, teacher.spec).model_dump_json(exclude_none=True)
    made: Made = kept(
        folder / f"{teacher.spec.name.replace(' ', '-')}-{hashlib.sha256(asked.encode()).hexdigest()[:12]}.pt",
        lambda: synthesise(teacher, posted),
    )
    print(f"{name}: made", flush=True)
    return made


def picture(rows: list[tuple[str, Tensor]], path: Path) -> None:
    """Rows of images (N, C, H, W), uint8, with what is said of each at its left."""
    columns = max(len(images) for _, images in rows)
    figure, axes = plt.subplots(
        len(rows), columns + 1, figsize=(0.62 * columns + 2.6, 0.64 * len(rows)), width_ratios=[4.2] + [1] * columns
    )
    figure.subplots_adjust(left=0.005, right=0.995, top=0.995, bottom=0.005, wspace=0.06, hspace=0.06)
    for (said, images), line in zip(rows, axes, strict=True):
        for axis in line:
            axis.set_axis_off()
        line[0].text(0, 0.5, said, transform=line[0].transAxes, va="center", fontsize=7.5)
        for axis, image in zip(line[1:], images, strict=False):
            shown = image.permute(1, 2, 0).squeeze(2).numpy()
            axis.imshow(shown, cmap="gray" if shown.ndim == 2 else None, vmin=0, vmax=255, interpolation="nearest")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, pil_kwargs={"quality": 85} if path.suffix == ".jpg" else None)
    plt.close(figure)


def one_of_each(images: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The first image of each class."""
    return torch.stack([images[labels == label][0] for label in range(classes)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("terms"))
    parser.add_argument("--task", choices=TASKS, default="fashion")
    parser.add_argument("--family", default=JUDGE, help="the teacher's architecture")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--network-passes", type=int, help="images that a network sees in training")
    parser.add_argument("--picture", type=Path, required=True)
    options = parser.parse_args()
    of = task(options.task)
    classes = min(10, len(of.class_names))
    teacher, judge = (
        network(options.folder, of, name, 0, passes=options.network_passes)
        for name in (options.family, judge_of(options.family))
    )
    real = one_of_each(of.held_out_images, of.held_out_labels, classes)
    known = [f"{100 * one.top1(of.held_out_images, of.held_out_labels):.0f} %" for one in (teacher, judge)]
    rows = [(f"real images\nteacher {known[0]}, judge {known[1]}", real)]
    base = {"images_per_class": -(-options.images // len(of.class_names)), "generator": None, **of.synthesis}
    spec = SynthesisSpec.resolve({"teacher": "teacher"} | base, teacher.spec)
    for name, posted in changes(spec).items():
        made = images_of(options.folder, name, teacher, base | posted)
        shares = [f"{100 * one.top1(made.images, made.labels):.0f} %" for one in (teacher, judge)]
        said = textwrap.fill(name, 38) + f"\nteacher {shares[0]}, judge {shares[1]}"
        rows.append((said, one_of_each(made.images, made.labels, classes)))
        print(f"| {name} | {shares[0]} | {shares[1]} |", flush=True)
    picture(rows, options.picture)


if __name__ == "__main__":
    main()
