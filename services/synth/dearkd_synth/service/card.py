"""The dataset card, by Hugging Face's conventions; it says plainly that the images are synthetic."""

import json
from collections.abc import Mapping
from typing import Any

from dearkd.data.hub_features import features_yaml
from dearkd.data.manifests import DatasetManifest
from dearkd.data.shard_files import LABEL, LOGITS
from dearkd.names import markdown, markdown_code, printable
from dearkd.storage.catalog import Teacher
from dearkd.vision.images import SUFFIXES

FIGURES = {
    "teacher_accuracy": "images that the teacher gives their label",
    "confidence": "mean probability of the label",
    "margin": "mean lead of the label's logit over the next",
    "intra_class_diversity": "mean cosine distance between images of a class, in the teacher's features",
    "batch_norm_distance": "mean distance to the teacher's BatchNorm statistics",
}
FIELDS = """\
  - name: json
    struct:
    - name: label
      dtype: int64
    - name: teacher_label
      dtype: int64
    - name: teacher_confidence
      dtype: float64
    - name: teacher_margin
      dtype: float64
"""
"""Features of each sample's JSON file (`dearkd.vision.shard_writer`)."""
TIMELAPSE = """
![the first batch, from noise to images](timelapse.webp)
"""
SIZES = {
    10**3: "n<1K",
    10**4: "1K<n<10K",
    10**5: "10K<n<100K",
    10**6: "100K<n<1M",
    10**7: "1M<n<10M",
    10**8: "10M<n<100M",
    10**9: "100M<n<1B",
    10**10: "1B<n<10B",
}
"""Hugging Face's words for numbers of samples below these."""
MAX_CLASSES = 100
"""The most classes that the card lists one by one."""


def dataset_card(dataset: DatasetManifest, teacher: Teacher, timelapse: bool = False) -> str:
    """The `README.md` of a synthetic dataset: contents, teacher, spec and quality.

    Args:
        dataset: its manifest.
        teacher: that it was made from.
        timelapse: True if `timelapse.webp` lies beside it.
    """
    quality = dataset.quality or {}
    figures = "\n".join(
        f"| {meaning} (`{name}`) | {quality[name]:.4f} |"
        for name, meaning in FIGURES.items()
        if quality.get(name) is not None
    )
    size = next(words for bound, words in SIZES.items() if dataset.num_samples < bound)
    made = [c for c in dataset.classes if c.samples]
    channels = "grey" if dataset.in_chans == 1 else "RGB"
    return f"""---
pretty_name: {json.dumps(printable(dataset.name or dataset.id), ensure_ascii=False)}
license: unknown
annotations_creators:
- machine-generated
source_datasets:
- original
task_categories:
- image-classification
size_categories:
- {size}
tags:
- synthetic
- webdataset
- deepinversion
- dearkd
configs:
- config_name: default
  data_files:
  - split: train
    path: train-*.tar
{_features(dataset)}---

# {markdown(dataset.name or dataset.id)}

**Every image here is synthetic.** {dataset.num_samples:,} {channels} images of {len(made)} classes,
{dataset.image_size}×{dataset.image_size} pixels, were optimised by dearkd until a trained CNN, the teacher, recognised
them. No image of its training data was used. The images carry what the teacher learned, its errors and biases included.

![a grid of samples, a row for each class](preview.png)
{TIMELAPSE if timelapse else ""}
- Teacher: {markdown_code(teacher.name)} (`{teacher.architecture}`, weights sha256 `{teacher.sha256}`)
- Method: {_method(dataset.spec or {})}
- Job: `{dataset.job}`, seed {dataset.seed}{_ended(dataset)}

| quality, by the teacher's own judgement of the stored pixels | |
|---|---|
{figures}

`dataset.json` has these for each shard and for each class, and names the samples of which the teacher is least sure.

{_classes(dataset)}```python
import webdataset as wds
shards = "train-{{000000..{len(dataset.shards) - 1:06d}}}.tar"
dataset = wds.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("png;webp;jpg", "cls")
```

## Spec

```json
{json.dumps(dataset.spec, indent=2)}
```
"""


def _features(dataset: DatasetManifest) -> str:
    """The columns of the shards, so that `datasets` knows the classes' names: by suffix, as it calls them."""
    spec = dataset.spec or {}
    suffix = SUFFIXES[spec.get("image_format", "png")].removeprefix(".")
    logits = f"  - name: {LOGITS}\n    list: float16\n" if spec.get("store_logits") else ""
    return features_yaml(suffix, LABEL, dataset.class_names) + FIELDS + logits


def _ended(dataset: DatasetManifest) -> str:
    return f"; it ended early: {dataset.ended_early.detail}" if dataset.ended_early else ""


def _method(spec: Mapping[str, Any]) -> str:
    """The method as a clause, by the terms of weight above 0."""
    weights = spec.get("weights", {})
    method = "DeepInversion (Yin et al., CVPR 2020)"
    if not weights.get("batch_norm"):
        method += " without its BatchNorm statistics"
    if weights.get("boundary"):
        method += (
            ", with the boundary-preserving intra-divergence loss of DearKD (Chen et al., CVPR 2022) in dearkd's "
            "reconstruction"
        )
    if weights.get("adaptive"):
        method += ", in competition with a student (Adaptive DeepInversion)"
    return method


def _classes(dataset: DatasetManifest) -> str:
    made = [c for c in dataset.classes if c.samples]
    if len(made) > MAX_CLASSES:
        return ""
    judged = (dataset.quality or {}).get("classes", {})
    rows = []
    for c in made:
        accuracy = judged.get(str(c.index), {}).get("teacher_accuracy")
        rows.append(
            f"| {c.index} | {markdown(c.name)} | {c.samples} | {'' if accuracy is None else f'{accuracy:.4f}'} |"
        )
    return "| label | class | images | teacher accuracy |\n|---|---|---|---|\n" + "\n".join(rows) + "\n\n"
