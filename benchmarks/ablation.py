"""What each term of the synthesis brings: DeepInversion, with the adaptive term, with the boundary term, with both.

    python benchmarks/ablation.py --task digits --json --picture ablation-digits.png
    python benchmarks/ablation.py --task photographs --seeds 3 --images-per-class 50 --json
    python benchmarks/ablation.py --task digits --seeds 1 --steps 5 --images-per-class 4 --epochs 1 --student-epochs 1

All arms take equally many steps and differ in the named terms alone. For each arm and seed: what the teacher, and a
stranger (a network of another family that was trained on the real images with another seed), make of the images; how
diverse they are in the features of each; how much of the real held-out images' features they cover; and how well a
student that was trained on them names real held-out images. The adaptive term competes with the student that the plain
arm of the same seed gave. `real` is what they are to come near to: as many of the images that the teacher was trained
on, and a student that learns from these in the same way. With --json every arm is a line as soon as it is done; the
last line has the means.
"""

import argparse
import io
import json
import statistics
import sys
import time
from dataclasses import replace
from typing import Any

import torch
from arms import STRANGER, TEACHER, Made, Network, figures, in_turn, synthesise, train_network, train_students
from PIL import Image, ImageDraw
from tasks import TASKS, Task, task
from torch import nn

from dearkd.vision.sample_grid import sample_grid

ARMS = {"deepinversion": (0, 0), "adaptive": (1, 0), "boundary": (0, 1), "both": (1, 1)}
"""Whether the adaptive and the boundary term take part."""
REAL = "real"


def run_seed(
    arguments: argparse.Namespace, data: Task, stranger: Network, seed: int
) -> tuple[list[dict[str, Any]], dict[str, Made]]:
    """A line of figures for each arm, and the images."""
    teacher = train_network(data, TEACHER, seed, arguments.epochs)
    print(f"seed {seed}: teacher {teacher.top1(data.held_out_images, data.held_out_labels):.4f}", file=sys.stderr)
    training = json.loads(arguments.training)
    if arguments.student_epochs is not None:
        training |= {"stage_one": {"epochs": arguments.student_epochs}, "stage_two": {"epochs": 0}}
    lines: list[dict[str, Any]] = []
    images: dict[str, Made] = {}
    adaptive_student: nn.Module | None = None
    for arm in (*ARMS, REAL):
        if arm not in arguments.arms and arm != "deepinversion":
            continue
        began = time.monotonic()
        if arm == REAL:
            made = as_many_real(data, images["deepinversion"])
        else:
            body = posted(arguments, data, teacher, arm, seed)
            made = synthesise(teacher, body, adaptive_student if ARMS[arm][0] else None)
        made_seconds = time.monotonic() - began
        student_top1, student = train_students(made, teacher, data, seed, training, count=arguments.students)
        if arm == "deepinversion":
            adaptive_student = student
        images[arm] = made
        lines.append(
            {
                "task": data.name,
                "arm": arm,
                "seed": seed,
                "images": len(made.labels),
                "teacher_passes": 0 if arm == REAL else made.spec.teacher_passes,
                **{name: round(value, 4) for name, value in figures(made, teacher, stranger, data).items()},
                "student_top1": round(student_top1, 4),
                "teacher_top1": round(teacher.top1(data.held_out_images, data.held_out_labels), 4),
                "synthesis_seconds": round(made_seconds, 1),
                "seconds": round(time.monotonic() - began, 1),
            }
        )
        if arguments.json:
            print(json.dumps(lines[-1]), flush=True)
        else:
            print(f"seed {seed}: {arm} done in {lines[-1]['seconds']} s", file=sys.stderr)
    return lines, images


def as_many_real(data: Task, made: Made) -> Made:
    """As many real training images as were made, of each class as many as of any other."""
    chosen = in_turn(data.labels)[: len(made.labels)]
    return replace(made, images=data.images[chosen], labels=data.labels[chosen])


def posted(arguments: argparse.Namespace, data: Task, teacher: Network, arm: str, seed: int) -> dict[str, Any]:
    """The synthesis spec of an arm: the preset's, with the arm's terms."""
    body: dict[str, Any] = {"seed": seed} | data.synthesis | json.loads(arguments.synthesis)
    if arguments.images_per_class is not None:
        body["images_per_class"] = arguments.images_per_class
    if arguments.steps is not None:
        side = teacher.spec.image_size
        body["phases"] = [{"resolution": side // 2, "input_size": side, "iterations": arguments.steps}]
    adaptive, boundary = ARMS[arm]
    weights = dict(body.get("weights", {}))
    if not boundary:
        weights["boundary"] = 0.0
    if adaptive:
        weights["adaptive"] = arguments.adaptive_weight
        body["adaptive_student"] = "the student of the plain arm"
    return body | {"weights": weights}


def means(lines: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Mean and standard deviation over the seeds, for each arm and figure."""
    summary: dict[str, dict[str, list[float]]] = {}
    for arm in dict.fromkeys(line["arm"] for line in lines):
        mine = [line for line in lines if line["arm"] == arm]
        names = [name for name, value in mine[0].items() if isinstance(value, float)]
        columns = {name: [line[name] for line in mine] for name in names}
        summary[arm] = {
            name: [round(statistics.fmean(values), 4), round(statistics.pstdev(values), 4)]
            for name, values in columns.items()
        }
    return summary


def picture(images: dict[str, Made], data: Task, *, rows: int = 10, columns: int = 6) -> Image.Image:
    """The arms' grids side by side under their names, after real training images."""
    made_ones = {arm: (made.images, made.labels) for arm, made in images.items() if arm != REAL}
    parts = {REAL: (data.images, data.labels)} | made_ones
    grids = {
        name: Image.open(io.BytesIO(sample_grid(pixels, labels, rows=rows, columns=columns)))
        for name, (pixels, labels) in parts.items()
    }
    head, gap = 16, 12
    width = sum(grid.width + gap for grid in grids.values()) - gap
    whole = Image.new("RGB", (width, head + max(grid.height for grid in grids.values())), "white")
    left = 0
    for name, grid in grids.items():
        ImageDraw.Draw(whole).text((left + 2, 2), name, fill="black")
        whole.paste(grid, (left, head))
        left += grid.width + gap
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="digits", choices=TASKS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--arms", nargs="+", default=[*ARMS, REAL], choices=[*ARMS, REAL])
    parser.add_argument("--images-per-class", type=int, help="by default the preset's")
    parser.add_argument("--steps", type=int, help="one phase of so many at half size; by default the preset's phases")
    parser.add_argument("--adaptive-weight", type=float, default=1.0)
    parser.add_argument("--epochs", type=int, default=15, help="of the CNNs on real images")
    parser.add_argument("--students", type=int, default=1, help="of each set, whose mean accuracy is told")
    parser.add_argument("--student-epochs", type=int, help="all in stage one; by default the recipe's two stages")
    parser.add_argument("--synthesis", default="{}", help="fields of the synthesis spec, as JSON")
    parser.add_argument("--training", default="{}", help="fields of the training spec, as JSON")
    parser.add_argument("--picture", help="where to write the first seed's grids, as PNG")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    data = task(arguments.task)
    stranger = train_network(data, STRANGER, 1000, arguments.epochs)
    known = stranger.top1(data.held_out_images, data.held_out_labels)
    print(f"stranger {known:.4f} on held-out real images", file=sys.stderr)
    lines: list[dict[str, Any]] = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        more, images = run_seed(arguments, data, stranger, seed)
        lines += more
        if arguments.picture and seed == arguments.first_seed:
            picture(images, data).save(arguments.picture)
    summary = means(lines)
    if arguments.json:
        print(json.dumps({"task": data.name, "stranger_top1": round(known, 4), "torch": torch.__version__, **summary}))
        return
    names = [
        "teacher_accuracy",
        "stranger_accuracy",
        "diversity",
        "nearest",
        "stranger_diversity",
        "precision",
        "recall",
    ]
    names += ["student_top1"]
    print(f"| {data.name} | " + " | ".join(name.replace("_", " ") for name in names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for arm, row in summary.items():
        print(f"| {arm} | " + " | ".join(f"{row[name][0]:.3f} ± {row[name][1]:.3f}" for name in names) + " |")


if __name__ == "__main__":
    main()
