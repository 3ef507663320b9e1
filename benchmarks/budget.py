"""Student accuracy against teacher passes: full-resolution DeepInversion, and ours.

    python benchmarks/budget.py --task digits --json
    python benchmarks/budget.py --task photographs --images-per-class 50 --reference-steps 2000 --json
    python benchmarks/budget.py --factors 1 --reference-steps 8 --images-per-class 4 --epochs 1 --student-epochs 1

A teacher pass is one forward and backward of one image. Ours takes the preset's phases and terms, its iterations times
each factor. Full-resolution DeepInversion optimises a tensor of the teacher's own size for `--reference-steps` times
each factor, in three forms, so that it is not judged by settings that suit another method: `published` with the
published ones for small images; `published-clipped` with these, kept in the range of pixels, in which images are
stored; `ours-at-full-size` with the weights and rate of pixels (`generator` null), without the boundary term. The
best of them is the one to compare with. All have as many images, and the same student is trained on each set. With
--json every set is a line as soon as it is done.
"""

import argparse
import json
import math
import sys
import time
from typing import Any

from ablation import means
from arms import TEACHER, Network, synthesise, train_network, train_students
from tasks import TASKS, Task, task

from dearkd.specs import SynthesisSpec, SynthesisWeights

METHODS = ("ours", "published", "published-clipped", "ours-at-full-size")


def posted(arguments: argparse.Namespace, data: Task, teacher: Network, method: str, factor: float) -> dict[str, Any]:
    """The synthesis spec of a method at a budget."""
    body: dict[str, Any] = data.synthesis | json.loads(arguments.synthesis)
    if arguments.images_per_class is not None:
        body["images_per_class"] = arguments.images_per_class
    if method != "ours":
        body["generator"] = None
    preset = SynthesisSpec.resolve({"teacher": "teacher"} | body, teacher.spec)
    if method == "ours":
        return body | {"phases": [_longer(phase.model_dump(), factor) for phase in preset.phases]}
    side = teacher.spec.image_size
    body["phases"] = [_longer({"resolution": side, "iterations": arguments.reference_steps}, factor)]
    if method.startswith("published"):
        return body | published(side, preset.batch_size) | {"clip": method == "published-clipped"}
    return body | {"weights": {**body.get("weights", {}), "boundary": 0.0}}


def published(side: int, batch_size: int) -> dict[str, Any]:
    """DeepInversion's settings for CIFAR-10 and a ResNet-34 (docs/method.md, section 1), at another image size.

    Its code takes the variation over the whole batch, which our term divides by the root of the batch.
    """
    return {
        "learning_rate": 0.05,
        "betas": [0.9, 0.999],
        "schedule": "constant",
        "warmup_iterations": 0,
        "statistics": "l2",
        "weights": dict.fromkeys(SynthesisWeights.model_fields, 0.0)
        | {"cross_entropy": 1.0, "batch_norm": 10.0, "total_variation_l2": 2.5e-5 * math.sqrt(batch_size)},
        "first_batch_norm_weight": 1.0,
        "jitter": max(1, side * 2 // 32),
        "flip": 0.0,
    }


def _longer(phase: dict[str, Any], factor: float) -> dict[str, Any]:
    return phase | {"iterations": max(1, round(phase["iterations"] * factor))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="digits", choices=TASKS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--factors", type=float, nargs="+", default=[0.25, 0.5, 1.0, 2.0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--reference-steps", type=int, default=2000)
    parser.add_argument("--images-per-class", type=int, help="by default the preset's")
    parser.add_argument("--epochs", type=int, default=15, help="of the CNN on real images")
    parser.add_argument("--students", type=int, default=1, help="of each set, whose mean accuracy is told")
    parser.add_argument("--student-epochs", type=int, help="all in stage one; by default the recipe's two stages")
    parser.add_argument("--synthesis", default="{}", help="fields of the synthesis spec of both, as JSON")
    parser.add_argument("--training", default="{}", help="fields of the training spec, as JSON")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    data = task(arguments.task)
    training = json.loads(arguments.training)
    if arguments.student_epochs is not None:
        training |= {"stage_one": {"epochs": arguments.student_epochs}, "stage_two": {"epochs": 0}}
    lines: list[dict[str, Any]] = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        teacher = train_network(data, TEACHER, seed, arguments.epochs)
        for method in arguments.methods:
            for factor in arguments.factors:
                began = time.monotonic()
                made = synthesise(teacher, posted(arguments, data, teacher, method, factor) | {"seed": seed})
                seconds = time.monotonic() - began
                student_top1, _ = train_students(made, teacher, data, seed, training, count=arguments.students)
                lines.append(
                    {
                        "task": data.name,
                        "arm": f"{method} {factor:g}×",
                        "seed": seed,
                        "passes_per_image": sum(phase.iterations for phase in made.spec.phases),
                        "teacher_accuracy": round(teacher.top1(made.images, made.labels), 4),
                        "student_top1": round(student_top1, 4),
                        "synthesis_seconds": round(seconds, 1),
                    }
                )
                if arguments.json:
                    print(json.dumps(lines[-1]), flush=True)
                else:
                    print(f"seed {seed}: {lines[-1]['arm']} done", file=sys.stderr)
    passes = {line["arm"]: line["passes_per_image"] for line in lines}
    summary = means(lines)
    if arguments.json:
        print(json.dumps({"task": data.name, **summary}))
        return
    print(f"| {data.name} | teacher passes an image | teacher accuracy | student top-1 |\n|---|---|---|---|")
    for arm, row in summary.items():
        accuracy, student = (
            f"{row[name][0]:.3f} ± {row[name][1]:.3f}" for name in ("teacher_accuracy", "student_top1")
        )
        print(f"| {arm} | {passes[arm]} | {accuracy} | {student} |")


if __name__ == "__main__":
    main()
