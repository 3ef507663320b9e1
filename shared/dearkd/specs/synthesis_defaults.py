"""The defaults of a synthesis spec, bent to the fields that were asked for, so that every default works."""

from collections.abc import Mapping
from typing import Any

from dearkd.specs.cuts import MAX_SHARD_BYTES, default_shard_samples, sample_bytes, thinnest_batch
from dearkd.specs.teacher import TeacherSpec


def with_input_sizes(given: dict[str, Any], image_size: int) -> dict[str, Any]:
    """A posted object with the `input_size` of those of its phases that name none: the teacher's `image_size`."""
    phases = given.get("phases")
    if not isinstance(phases, list):
        return given
    filled = [
        {"input_size": image_size} | {k: v for k, v in phase.items() if not (k == "input_size" and v is None)}
        if isinstance(phase, dict)
        else phase
        for phase in phases
    ]
    return given | {"phases": filled}


def fit(filled: dict[str, Any], given: Mapping[str, Any], teacher: TeacherSpec) -> dict[str, Any]:
    """Bend those defaults that were not asked for to those fields that were, so that every default works."""
    classes, per_class = filled["classes"], filled["images_per_class"]
    if not isinstance(classes, list) or not classes or not isinstance(per_class, int) or per_class < 1:
        return filled  # the check to come says what is wrong
    batch, groups = filled["batch_size"], filled["classes_per_batch"]
    if not isinstance(batch, int) or not isinstance(groups, int) or batch < 1 or groups < 1:
        return filled
    if "classes_per_batch" not in given:
        groups = max(
            p for p in range(1, min(groups, len(classes), batch) + 1) if batch % p == 0 or "batch_size" not in given
        )
    if "batch_size" not in given:
        batch = groups * max(1, min(batch // groups, per_class))
    filled |= {"batch_size": batch, "classes_per_batch": groups}
    filled |= _shards(filled, given, teacher)
    posted_weights, shard = given.get("weights"), filled["shard_samples"]
    asked = isinstance(posted_weights, Mapping) and "boundary" in posted_weights
    judged = isinstance(shard, int) and shard > 0 and isinstance(filled["weights"], dict)
    if judged and not asked and thinnest_batch(**_cut(filled), shard_samples=shard) <= 1:
        filled["weights"] = filled["weights"] | {"boundary": 0.0}  # as it would be refused if it had been asked for
    if "jitter" not in given and isinstance(filled["phases"], list):
        sizes = [
            p["input_size"] for p in filled["phases"] if isinstance(p, dict) and isinstance(p.get("input_size"), int)
        ]
        filled["jitter"] = min([filled["jitter"], *(size - 1 for size in sizes if size > 0)])
    if isinstance(filled["phases"], list):
        steps = sum(
            p["iterations"] for p in filled["phases"] if isinstance(p, dict) and isinstance(p.get("iterations"), int)
        )
        if "warmup_iterations" not in given:
            filled["warmup_iterations"] = max(0, min(filled["warmup_iterations"], steps // 10))
        if "unlabelled_iterations" not in given:
            matched = isinstance(filled["weights"], dict) and filled["weights"].get("batch_norm") != 0
            least = min(filled["unlabelled_iterations"], steps // 4)
            filled["unlabelled_iterations"] = max(0, least) if matched else 0
    return filled


def _shards(filled: Mapping[str, Any], given: Mapping[str, Any], teacher: TeacherSpec) -> dict[str, Any]:
    """How the samples are cut; where a student is trained on some shards, so that there are some and others [R]."""
    cut, shard = _cut(filled), filled["shard_samples"]
    samples = len(filled["classes"]) * filled["images_per_class"]
    fits = max(1, MAX_SHARD_BYTES // sample_bytes(teacher, logits=filled.get("store_logits") is True))
    if "shard_samples" not in given:
        shard = default_shard_samples(min(max(shard, filled["batch_size"]), fits), fits, **cut)
    weights = filled["weights"]
    adaptive = weights.get("adaptive") if isinstance(weights, Mapping) else None
    trains = isinstance(adaptive, int | float) and adaptive > 0 and filled.get("adaptive_student") is None
    if trains and "shard_samples" not in given and shard >= samples:
        half, groups = (samples + 1) // 2, cut["classes_per_batch"]
        whole = -(-half // groups) * groups
        shard = default_shard_samples(whole if whole < samples else half, fits, **cut)
    found = {"shard_samples": shard}
    if trains and given.get("adaptive_every") is None and isinstance(shard, int) and shard > 0:
        group = cut["classes_per_batch"] * filled["images_per_class"]
        # With one group every shard holds all classes.
        found["adaptive_every"] = 10 if group >= samples else max(2, min(10, group // shard))
    return found


def _cut(filled: Mapping[str, Any]) -> dict[str, int]:
    """What `cuts` asks for, but for the size of shards."""
    classes = len(filled["classes"])
    return {
        "classes": classes,
        "images_per_class": filled["images_per_class"],
        "classes_per_batch": min(filled["classes_per_batch"], classes),
        "batch_size": filled["batch_size"],
    }
