"""Whether images made in bfloat16 are as good as those in float32: the same seeds, the same teacher, both judged alike.

    python benchmarks/precision.py --json
    python benchmarks/precision.py --seeds 1 --images-per-class 4 --epochs 6

A line for each seed and one for their mean: the teacher's accuracy and confidence on the stored pixels and their
distance from its BatchNorm statistics, all judged in float32, and the ratio of bfloat16 to float32. Expected is within
2 % for accuracy and distance.
"""

import argparse
import json
import statistics
from typing import Any

from arms import TEACHER, Network, train_network
from tasks import TASKS, task

from dearkd.specs import SynthesisSpec
from dearkd_synth.inversion import DeepInversion
from dearkd_synth.quality import merge_quality, shard_quality

FIGURES = ("teacher_accuracy", "confidence", "batch_norm_distance", "intra_class_diversity")
PRECISIONS = ("float32", "bfloat16")


def figures(teacher: Network, posted: dict[str, Any]) -> dict[str, float]:
    spec = SynthesisSpec.resolve({"teacher": "teacher"} | posted, teacher.spec)
    with DeepInversion(teacher.model, teacher.spec, spec) as inversion:
        made = merge_quality([shard_quality(inversion.shard(index)) for index in range(spec.num_shards)])
    return {name: made[name] for name in FIGURES}


def beside_each_other(by_precision: dict[str, dict[str, float]]) -> dict[str, float]:
    row: dict[str, float] = {}
    for name in FIGURES:
        exact, short = (by_precision[precision][name] for precision in PRECISIONS)
        row |= {f"{name}_float32": exact, f"{name}_bfloat16": short, f"{name}_ratio": short / exact}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="digits", choices=TASKS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images-per-class", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=15, help="of the CNN on real images")
    parser.add_argument("--synthesis", default="{}", help="fields of the synthesis spec, as JSON")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    data = task(arguments.task)
    rows = []
    for seed in range(arguments.seeds):
        teacher = train_network(data, TEACHER, seed, arguments.epochs)
        posted = data.synthesis | {"images_per_class": arguments.images_per_class, "seed": seed}
        posted |= json.loads(arguments.synthesis)
        row = beside_each_other({p: figures(teacher, posted | {"precision": p}) for p in PRECISIONS})
        rows.append({"seed": seed} | row)
        _print(rows[-1], arguments.json)
    if len(rows) > 1:
        names = [name for name in rows[0] if name != "seed"]
        _print({"seed": "mean"} | {name: statistics.fmean(row[name] for row in rows) for name in names}, arguments.json)


def _print(row: dict[str, Any], as_json: bool) -> None:
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
    if as_json:
        print(json.dumps(rounded), flush=True)
    else:
        print("  ".join(f"{name} {value}" for name, value in rounded.items()), flush=True)


if __name__ == "__main__":
    main()
