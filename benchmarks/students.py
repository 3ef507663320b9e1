"""What a student learns from real images, by number of images: DearKD beside DeiT, a plain ViT and a CNN of its cost.

    python benchmarks/students.py --folder students --task fashion --images 2000 10000 --seeds 0 1 2

Each arm is the recipe's default with what the name says. A cell is trained once, then read from the folder. Images are
taken evenly from the classes of the task's training part; held-out ones judge, and none of them is trained on.
"""

import argparse
import hashlib
import json
import statistics
import time
from pathlib import Path
from typing import Any

from arms import Network, few, train_network, train_on
from matrix import network
from tasks import TASKS, Task, task

NO_HIDDEN: dict[str, Any] = {"weights": {"hidden": 0.0}}
ARMS: dict[str, dict[str, Any]] = {
    "dearkd": {},
    "no-hidden": {"stage_one": NO_HIDDEN},
    "no-mhca": {"student": {"mhca_blocks": 0}},
    "no-stage-two": {"stage_two": {"epochs": 0}},
    # DeiT (Touvron et al., 2021): a distillation token, the teacher's decisions, and nothing of convolutions.
    "deit": {
        "student": {"mhca_blocks": 0, "distilled": True},
        "stage_one": {"distillation": "hard", "weights": {"classification": 0.5, "distillation": 0.5, "hidden": 0.0}},
    },
    # Without MHCA the student computes what timm's VisionTransformer does (tests/unit/trainer/test_student.py).
    "plain-vit": {
        "student": {"mhca_blocks": 0},
        "stage_one": {"distillation": "none", "weights": {"hidden": 0.0}},
    },
}
CNN = "resnet10t"
"""On 32 px about the multiplications of the student (printed)."""


def cell(
    folder: Path, of: Task, teacher: Network, images: int, arm: str, posted: dict[str, Any], seed: int
) -> dict[str, Any]:
    asked = hashlib.sha256(json.dumps(posted, sort_keys=True).encode()).hexdigest()[:8]
    path = folder / f"student-{of.name}-{images}-{arm}-{asked}-{seed}.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    given, began = few(of, images), time.perf_counter()
    if arm == "cnn":
        made = train_network(given, CNN, seed, epochs=40)
        top1 = made.top1(of.held_out_images, of.held_out_labels)
    else:
        top1, _ = train_on(
            given.images,
            given.labels,
            teacher,
            of,
            {"seed": seed, **posted},
            synthetic=False,
            mirrored=of.synthesis.get("flip", 0.5) > 0,
        )
    row = {"arm": arm, "images": images, "seed": seed, "top1": top1, "seconds": time.perf_counter() - began}
    path.write_text(json.dumps(row))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("students"))
    parser.add_argument("--task", default="fashion", choices=TASKS)
    parser.add_argument("--teacher", default=CNN)
    parser.add_argument("--images", type=int, nargs="+", default=[2000, 10_000])
    parser.add_argument("--arms", nargs="+", default=[*ARMS, "cnn"])
    parser.add_argument("--arm-file", type=Path, help="JSON of further arms: name to fields of the training spec")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    arms = ARMS | {"cnn": {}} | (json.loads(options.arm_file.read_text()) if options.arm_file else {})
    of = task(options.task)
    teacher = network(options.folder, of, options.teacher, 0)
    print(f"teacher {options.teacher} {teacher.top1(of.held_out_images, of.held_out_labels):.4f}", flush=True)
    for images in options.images:
        for arm in options.arms:
            rows = [cell(options.folder, of, teacher, images, arm, arms[arm], seed) for seed in options.seeds]
            top1 = [row["top1"] for row in rows]
            print(
                f"{options.task} {images:6} {arm:14} {statistics.fmean(top1):.4f} ({min(top1):.4f}–{max(top1):.4f})  "
                f"{statistics.fmean(row['seconds'] for row in rows):.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
