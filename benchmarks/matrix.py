"""One rule for every teacher: families × tasks, each cell cached, with the share of labels and a stranger's judgement.

    python benchmarks/matrix.py --folder matrix --tasks fashion glyphs
    python benchmarks/matrix.py --folder matrix --table

A cell is a teacher, trained here on the task's real images, and images made from it with an arm's spec. Its figures:
the share of the images that the teacher, and an independent network of the same task, give their label.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from arms import figures, judge_of, network, synthesise
from tasks import TASKS, Task, task

from dearkd.specs import SynthesisSpec

FAMILIES = ("resnet10t", "mobilenetv3_small_050", "efficientnet_lite0", "regnety_002", "densenet121", "vgg11_bn")
ARMS: dict[str, dict[str, Any]] = {
    "auto": {},
    "pixels": {"generator": None},
    "published": {"preset": "published-cifar", "phases": [{"resolution": 32, "input_size": 32, "iterations": 200}]},
    **{distance: {"statistics": distance} for distance in ("symmetric", "wasserstein", "normalised_l2")},
}
"""The default, that without its generator, DeepInversion's own objective in 200 passes, and other distances."""


def cell(folder: Path, of: Task, family: str, arm: str, posted: dict[str, Any], images: int) -> dict[str, Any]:
    """Made once, then read from the folder; another one where the same arm comes to another spec."""
    teacher, stranger = (network(folder, of, name, 0) for name in (family, judge_of(family)))
    posted = {"images_per_class": -(-images // len(of.class_names)), **of.synthesis, **posted}
    spec = SynthesisSpec.resolve({"teacher": "teacher"} | posted, teacher.spec)
    asked = hashlib.sha256(spec.model_dump_json(exclude_none=True).encode()).hexdigest()[:8]
    path = folder / f"{of.name}-{family}-{arm}-{asked}.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    began = time.perf_counter()
    made = synthesise(teacher, posted)
    row = {
        "task": of.name,
        "family": family,
        "arm": arm,
        "teacher_top1": teacher.top1(of.held_out_images, of.held_out_labels),
        "stranger_top1": stranger.top1(of.held_out_images, of.held_out_labels),
        **figures(made, teacher, stranger, of),
        "seconds": time.perf_counter() - began,
    }
    torch.save((made.images, made.labels), path.with_suffix(".images.pt"))
    path.write_text(json.dumps(row))
    return row


def table(folder: Path) -> str:
    """The cells of a folder as Markdown, arms beside each other: share of labels by the teacher, by the judge."""
    rows = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    rows = [row for row in rows if "stranger_accuracy" in row]
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    lines = ["| task | teacher | of real images | " + " | ".join(arms) + " |", "|---" * (3 + len(arms)) + "|"]
    for name, family in dict.fromkeys((row["task"], row["family"]) for row in rows):
        mine = {row["arm"]: row for row in rows if (row["task"], row["family"]) == (name, family)}
        real = next(iter(mine.values()))
        shown = [
            f"{mine[arm]['teacher_accuracy']:.0%}, {mine[arm]['stranger_accuracy']:.0%}" if arm in mine else "–"
            for arm in arms
        ]
        real_shown = f"{real['teacher_top1']:.0%}, {real['stranger_top1']:.0%}"
        lines.append(f"| {name} | {family} | {real_shown} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("matrix"))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--families", nargs="+", default=list(FAMILIES))
    parser.add_argument("--arms", nargs="+", default=["auto", "published"])
    parser.add_argument("--arm-file", type=Path, help="JSON of further arms: name to fields of the synthesis spec")
    parser.add_argument("--images", type=int, default=104)
    parser.add_argument("--table", action="store_true", help="print what is there, and make nothing")
    options = parser.parse_args()
    if options.table:
        print(table(options.folder))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    arms = ARMS | (json.loads(options.arm_file.read_text()) if options.arm_file else {})
    for name in options.tasks:
        of = task(name)
        for family in options.families:
            for arm in options.arms:
                row = cell(options.folder, of, family, arm, arms[arm], options.images)
                print(
                    f"{name:12} {family:22} {arm:16} real {row['teacher_top1']:.3f} {row['stranger_top1']:.3f}  "
                    f"label {row['teacher_accuracy']:.3f}  stranger {row['stranger_accuracy']:.3f}  "
                    f"diversity {row['stranger_diversity']:.3f}  {row['seconds']:.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
