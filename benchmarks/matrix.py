"""One rule for every teacher: families × tasks, each cell cached, with the share of labels and a stranger's judgement.

    python benchmarks/matrix.py --folder matrix --arms l2 gaussian --tasks fashion glyphs

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
from arms import Network, few, figures, synthesise, train_network
from tasks import TASKS, Task, task

FAMILIES = ("resnet10t", "mobilenetv3_small_050", "efficientnet_lite0", "regnety_002", "densenet121", "vgg11_bn")
ARMS: dict[str, dict[str, Any]] = {
    distance: {"statistics": distance} for distance in ("l2", "gaussian", "symmetric", "wasserstein", "normalised_l2")
}
"""The teacher's own preset with each distance of the statistics; its weights are those found for `l2`."""
JUDGE, OTHER_JUDGE = "resnet10t", "mobilenetv3_small_050"
"""Judges the images of all families but its own, which `OTHER_JUDGE` judges."""
TEACHER_IMAGES = 12_000
EPOCHS = {"digits": 30, "fashion": 5, "photographs": 20, "glyphs": 10}
"""Of the networks, on so many images at most: some 60,000 in all."""


def network(folder: Path, of: Task, architecture: str, seed: int) -> Network:
    """Trained once, then read from the folder."""
    path = folder / f"{of.name}-{architecture}-{seed}.pt"
    if path.exists():
        found: Network = torch.load(path, weights_only=False)
        return found
    made = train_network(few(of, TEACHER_IMAGES), architecture, seed, EPOCHS[of.name])
    print(f"{of.name} {architecture} {made.top1(of.held_out_images, of.held_out_labels):.3f}", flush=True)
    torch.save(made, path)
    return made


def cell(folder: Path, of: Task, family: str, arm: str, posted: dict[str, Any], images: int) -> dict[str, Any]:
    """Made once, then read from the folder."""
    asked = hashlib.sha256(json.dumps([posted, images], sort_keys=True).encode()).hexdigest()[:8]
    path = folder / f"{of.name}-{family}-{arm}-{asked}.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    teacher, stranger = (network(folder, of, name, 0) for name in (family, OTHER_JUDGE if family == JUDGE else JUDGE))
    began = time.perf_counter()
    made = synthesise(teacher, {"images_per_class": -(-images // len(of.class_names)), **of.synthesis, **posted})
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("matrix"))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--families", nargs="+", default=list(FAMILIES))
    parser.add_argument("--arms", nargs="+", default=["l2"])
    parser.add_argument("--arm-file", type=Path, help="JSON of further arms: name to fields of the synthesis spec")
    parser.add_argument("--images", type=int, default=104)
    options = parser.parse_args()
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
