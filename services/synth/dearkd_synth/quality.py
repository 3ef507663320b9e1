"""Figures of the quality of synthesised images, for `dataset.json`."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from dearkd.vision.shard_writer import sample_key
from dearkd_synth.synthesised import SynthesisedShard

Quality = dict[str, Any]

OUTLIERS = 20
"""The number of outliers listed for a shard, and for a dataset."""


def shard_quality(shard: SynthesisedShard) -> Quality:
    """The figures of a shard, ready for JSON; all are of the stored pixels.

    - `teacher_accuracy`: fraction of images for which the teacher predicts the label.
    - `confidence`: its mean probability of the label.
    - `margin`: mean of the label's logit minus the largest other.
    - `intra_class_diversity`: mean cosine distance of the teacher's pooled features over all pairs of images of a
      class; None without pairs.
    - `batch_norm_distance`: mean of the objective's BatchNorm term.
    - `classes`: these figures by class index, there with the BatchNorm term of the class's images alone, which is
      larger than that of a whole batch and serves to compare classes.
    - `outliers`: the samples of lowest margin, with their keys.
    - `restarts`: times a batch was started again at a lower learning rate.
    - `halved_batches`: times a batch was cut in two for lack of memory.
    """
    labels, features = shard.labels, F.normalize(shard.features, dim=1)
    right = (shard.predicted == labels).float()
    classes: dict[str, Quality] = {}
    for label in labels.unique().tolist():
        mine = labels == label
        classes[str(label)] = {
            "samples": int(mine.sum()),
            "teacher_accuracy": right[mine].mean().item(),
            "confidence": shard.confidence[mine].mean().item(),
            "margin": shard.margin[mine].mean().item(),
            "intra_class_diversity": _mean_pairwise_distance(features[mine]),
            "batch_norm_distance": _weighted_mean(
                [
                    (batch.class_batch_norm_distance[label], int((batch.labels == label).sum()))
                    for batch in shard.batches
                    if label in batch.class_batch_norm_distance
                ]
            ),
        }
    outliers = [
        {
            "key": sample_key(shard.samples[i]),
            "label": int(labels[i]),
            "teacher_label": int(shard.predicted[i]),
            "margin": shard.margin[i].item(),
        }
        for i in range(len(labels))
    ]
    return _summary(list(classes.values())) | {
        "batch_norm_distance": _weighted_mean(
            [(batch.batch_norm_distance, len(batch.labels)) for batch in shard.batches]
        ),
        "restarts": sum(batch.restarts for batch in shard.batches),
        "halved_batches": shard.halved,
        "outliers": _lowest(outliers),
        "classes": classes,
    }


def merge_quality(shards: Sequence[Mapping[str, Any]]) -> Quality:
    """The figures of a dataset from those of its shards. Diversity counts only pairs within a shard."""
    parts: dict[str, list[Mapping[str, Any]]] = {}
    for shard in shards:
        for label, figures in shard["classes"].items():
            parts.setdefault(label, []).append(figures)
    classes = {
        label: _summary(parts[label]) | {"batch_norm_distance": _known_mean("batch_norm_distance", parts[label])}
        for label in sorted(parts, key=int)
    }
    return _summary([part for label in classes for part in parts[label]]) | {
        "batch_norm_distance": _weighted_mean([(s["batch_norm_distance"], s["samples"]) for s in shards]),
        # A worker of an earlier version says none of these of its shards, nor `batch_norm_distance` of its classes.
        "restarts": sum(s.get("restarts", 0) for s in shards),
        "halved_batches": sum(s.get("halved_batches", 0) for s in shards),
        "outliers": _lowest([outlier for s in shards for outlier in s.get("outliers", [])]),
        "classes": classes,
    }


def without_parts(quality: Mapping[str, Any]) -> Quality:
    """The figures as a whole, without those of classes and samples: of many shards these are most of a manifest."""
    return {name: value for name, value in quality.items() if name not in ("classes", "outliers")}


def _mean_pairwise_distance(features: Tensor) -> float | None:
    """1 − the mean cosine similarity over all pairs of L2-normalised features (n, D); None without a pair."""
    n = len(features)
    if n < 2:
        return None
    # The sum over all ordered pairs, each with itself included, is the squared norm of the sum.
    similarity = (features.double().sum(dim=0).square().sum().item() - n) / (n * (n - 1))
    return 1 - similarity


def _lowest(outliers: Sequence[Quality]) -> list[Quality]:
    return sorted(outliers, key=lambda outlier: (outlier["margin"], outlier["key"]))[:OUTLIERS]


def _summary(parts: Sequence[Mapping[str, Any]]) -> Quality:
    """The figures of all samples together; each part is of one class of one shard."""
    summary: Quality = {"samples": sum(part["samples"] for part in parts)}
    for name in ("teacher_accuracy", "confidence", "margin"):
        summary[name] = _weighted_mean([(part[name], part["samples"]) for part in parts])
    by_pairs = [
        (part["intra_class_diversity"], part["samples"] * (part["samples"] - 1) / 2)
        for part in parts
        if part["intra_class_diversity"] is not None
    ]
    return summary | {"intra_class_diversity": _weighted_mean(by_pairs) if by_pairs else None}


def _known_mean(name: str, parts: Sequence[Mapping[str, Any]]) -> float | None:
    """The mean of a figure over the samples of parts that have it (earlier versions wrote fewer); None without any."""
    known = [(part[name], part["samples"]) for part in parts if name in part]
    return _weighted_mean(known) if known else None


def _weighted_mean(values: Sequence[tuple[float, float]]) -> float:
    return sum(value * weight for value, weight in values) / sum(weight for _, weight in values)
