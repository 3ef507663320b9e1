"""The model card: Hugging Face's conventions; what the model learned from, and how well."""

import json
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from dearkd.datasets import DatasetManifest
from dearkd.resources import Accuracy, Model

TAGS = ["dearkd", "vision-transformer", "knowledge-distillation", "image-classification"]
UNKNOWN_LICENCE = "unknown"
"""Hugging Face's own word for it: nobody but the user knows under what terms the teacher's weights stand."""


def model_card(
    model: Model, dataset: DatasetManifest, metrics: Mapping[str, int | float], *, licence: str = UNKNOWN_LICENCE
) -> str:
    """`README.md` of a model: teacher, data, spec, accuracy."""
    if model.accuracy is None:
        accuracy = "not evaluated on images of its own"
    else:
        accuracy = f"top-1 {model.accuracy.top1:.4f}, top-5 {model.accuracy.top5:.4f} on `{model.accuracy.dataset}`"
    data = (
        f"{dataset.num_samples} synthetic images (`{dataset.id}`), made from the teacher alone"
        if dataset.spec is not None
        else f"{dataset.num_samples} images of `{dataset.id}`"
    )
    last = "\n".join(f"| {name} | {value:.4g} |" for name, value in metrics.items())
    return f"""{_header(model.name or model.id, model.accuracy, licence)}
# {model.name or model.id}

A DearKD vision transformer (`{model.architecture}`, {model.image_size}×{model.image_size} pixels, {model.in_chans}
channel(s), {model.num_classes} classes), trained in DearKD's two stages (Chen et al., CVPR 2022).

- Trained on: {data}
- Teacher: {f"`{model.teacher}`" if model.teacher else "none"}
- Accuracy: {accuracy}. The exported weights are the last epoch's{
        ", averaged over training" if model.spec["optimizer"]["model_ema_half_life"] else ""
    }.
- Run: `{model.run}`, seed {model.spec["seed"]}

| last epoch | |
|---|---|
{last}

{USE}
## Spec

```json
{json.dumps(model.spec, indent=2)}
```
"""


def plain_card(name: str, config: Mapping[str, Any], *, licence: str = UNKNOWN_LICENCE) -> str:
    """The card of a model of which nothing but its two files is at hand."""
    arguments = config["model_args"]
    return f"""{_header(name, None, licence)}
# {name}

A DearKD vision transformer (`{config["architecture"]}`, {arguments["img_size"]}×{arguments["img_size"]} pixels,
{arguments["in_chans"]} channel(s), {config["num_classes"]} classes; Chen et al., CVPR 2022).

- Trained on: not recorded
- Teacher: not recorded
- Accuracy: not recorded

{USE}"""


def with_licence(card: str, licence: str) -> str:
    """The same card under another licence."""
    parsed = ModelCard(card, ignore_metadata_errors=True)
    parsed.data["license"] = licence
    return str(parsed.content)


def _header(name: str, accuracy: Accuracy | None, licence: str) -> str:
    results = None
    if accuracy is not None:
        results = [
            EvalResult(
                task_type="image-classification",
                dataset_type=accuracy.dataset,
                dataset_name=accuracy.dataset,
                metric_type="accuracy",
                metric_name=f"top-{k}",
                metric_value=value,
            )
            for k, value in ((1, accuracy.top1), (5, accuracy.top5))
        ]
    about = ModelCardData(
        license=licence,
        library_name="timm",
        pipeline_tag="image-classification",
        tags=TAGS,
        model_name=name if results else None,
        eval_results=results,
    )
    return f"---\n{about.to_yaml()}\n---\n"


USE = """## Use

```python
import dearkd_trainer  # registers the architecture with timm
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # FOLDER: where this file lies
data = timm.data.resolve_model_data_config(model)  # its input: size, mean, std
```
"""
