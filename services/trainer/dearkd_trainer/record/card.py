"""The model card: Hugging Face's conventions; what the model learned from, and how well."""

import json
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from dearkd.data.manifests import DatasetManifest
from dearkd.names import markdown, markdown_code
from dearkd.storage.catalog import Accuracy, Model

TAGS = ["dearkd", "vision-transformer", "knowledge-distillation", "image-classification"]
UNKNOWN_LICENCE = "unknown"
"""Hugging Face's own word for it: nobody but the user knows under what terms the teacher's weights stand."""


def model_card(
    model: Model, dataset: DatasetManifest, metrics: Mapping[str, int | float], *, licence: str = UNKNOWN_LICENCE
) -> str:
    """`README.md` of a stored model: teacher, data, spec, accuracy."""
    data = (
        f"{dataset.num_samples} synthetic images (`{dataset.id}`), made from the teacher alone"
        if dataset.spec is not None
        else f"{dataset.num_samples} images of `{dataset.id}`"
    )
    return run_card(
        model.name or model.id,
        model.spec,
        architecture=model.architecture,
        image_size=model.image_size,
        in_chans=model.in_chans,
        num_classes=model.num_classes,
        data=data,
        teacher=model.teacher,
        accuracy=model.accuracy,
        metrics=metrics,
        run=model.run,
        licence=licence,
    )


def run_card(
    name: str,
    spec: Mapping[str, Any],
    *,
    architecture: str,
    image_size: int,
    in_chans: int,
    num_classes: int,
    data: str,
    teacher: str | None,
    accuracy: Accuracy | None,
    metrics: Mapping[str, int | float],
    run: str | None = None,
    licence: str = UNKNOWN_LICENCE,
) -> str:
    """`README.md` of what a run made, stored or not.

    Args:
        name: of the model.
        spec: the training spec as JSON.
        architecture, image_size, in_chans, num_classes: of the student.
        data: what it was trained on, as a clause.
        teacher: its id or name.
        accuracy: of the exported weights, on images of their own.
        metrics: the last epoch's row.
        run: the run's id, where it has one.
        licence: of the weights.
    """
    measured = "not evaluated on images of its own"
    if accuracy is not None:
        measured = f"top-1 {accuracy.top1:.4f}, top-5 {accuracy.top5:.4f} on {markdown_code(accuracy.dataset)}"
    last = "\n".join(f"| {name} | {value:.4g} |" for name, value in metrics.items())
    return f"""{_header(name, accuracy, licence)}
# {markdown(name)}

A DearKD vision transformer (`{architecture}`, {image_size}×{image_size} pixels, {in_chans}
channel(s), {num_classes} classes), trained in DearKD's two stages (Chen et al., CVPR 2022).

- Trained on: {data}
- Teacher: {markdown_code(teacher) if teacher else "none"}
- Accuracy: {measured}. The exported weights are the last epoch's{
        ", averaged over training" if spec["optimizer"]["model_ema_half_life"] else ""
    }.
- Run: {f"`{run}`, " if run else ""}seed {spec["seed"]}

| last epoch | |
|---|---|
{last}

{USE}
## Spec

```json
{json.dumps(spec, indent=2)}
```
"""


def plain_card(name: str, config: Mapping[str, Any], *, licence: str = UNKNOWN_LICENCE) -> str:
    """The card of a model of which nothing but its two files is at hand."""
    arguments = config["model_args"]
    return f"""{_header(name, None, licence)}
# {markdown(name)}

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
