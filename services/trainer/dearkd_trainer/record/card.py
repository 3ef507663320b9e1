"""The model card, by Hugging Face's conventions: training data, teacher and accuracy."""

import json
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from dearkd.names import markdown, markdown_code

UNKNOWN_LICENCE = "unknown"
"""Hugging Face's own word: only the user knows the licence of the teacher's weights."""


def run_card(
    name: str,
    spec: Mapping[str, Any],
    *,
    kind: str,
    architecture: str,
    image_size: int,
    in_chans: int,
    num_classes: int,
    data: str,
    teacher: str | None,
    accuracy: Mapping[str, float],
    evaluated_on: str | None,
    metrics: Mapping[str, int | float],
    run: str | None = None,
    samples: str | None = None,
    licence: str = UNKNOWN_LICENCE,
) -> str:
    """The `README.md` of a run's model, stored or not.

    Args:
        name: of the model.
        spec: the training spec as JSON.
        kind: the student's sort of network, such as "vision transformer".
        architecture, image_size, in_chans, num_classes: of the student.
        data: what it was trained on, as a clause.
        teacher: its id or name.
        accuracy: of the exported weights on images of their own, fractions by name; empty without any.
        evaluated_on: the dataset of those images.
        metrics: the last epoch's row.
        run: the run's id, where it has one.
        samples: the name of a picture of training images beside the card, where there is one.
        licence: of the weights.
    """
    measured = _measured(accuracy, evaluated_on) or "not evaluated on images of its own"
    picture = f"\n![training images, a row for each class]({samples})\n" if samples else ""
    last = "\n".join(f"| {name} | {value:.4g} |" for name, value in metrics.items())
    return f"""{_header(name, kind, accuracy, evaluated_on, licence)}
# {markdown(name)}

A DearKD {kind} (`{architecture}`, {image_size}×{image_size} pixels, {in_chans}
channel(s), {num_classes} classes), trained in DearKD's two stages (Chen et al., CVPR 2022).
{picture}
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


def plain_card(
    name: str,
    kind: str,
    config: Mapping[str, Any],
    *,
    accuracy: Mapping[str, float],
    evaluated_on: str | None,
    licence: str = UNKNOWN_LICENCE,
) -> str:
    """The card of a model that has none: of its two files, and of its evaluation where that is at hand.

    Args:
        name: of the model.
        kind: as in `run_card`.
        config: its `config.json`.
        accuracy, evaluated_on, licence: as in `run_card`.
    """
    in_chans, height, width = config["pretrained_cfg"]["input_size"]
    return f"""{_header(name, kind, accuracy, evaluated_on, licence)}
# {markdown(name)}

A DearKD {kind} (`{config["architecture"]}`, {height}×{width} pixels,
{in_chans} channel(s), {config["num_classes"]} classes; Chen et al., CVPR 2022).

- Trained on: not recorded
- Teacher: not recorded
- Accuracy: {_measured(accuracy, evaluated_on) or "not recorded"}

{USE}"""


def with_licence(card: str, licence: str) -> str:
    """The same card under another licence."""
    parsed = ModelCard(card, ignore_metadata_errors=True)
    parsed.data["license"] = licence
    return str(parsed.content)


def for_hub(card: str) -> str:
    """The same card of a folder that has the network's code: whoever reads it needs no dearkd."""
    parsed = ModelCard(card, ignore_metadata_errors=True)
    parsed.data["library_name"] = "transformers"
    tags = parsed.data.get("tags") or []
    parsed.data["tags"] = [*tags, *(tag for tag in ("timm", "custom_code") if tag not in tags)]
    text = str(parsed.content)
    return text.replace(USE, HUB_USE) if USE in text else f"{text.rstrip()}\n\n{HUB_USE}"


def _measured(accuracy: Mapping[str, float], evaluated_on: str | None) -> str | None:
    if evaluated_on is None:
        return None
    return ", ".join(f"{name} {value:.4f}" for name, value in accuracy.items()) + f" on {markdown_code(evaluated_on)}"


def _header(name: str, kind: str, accuracy: Mapping[str, float], evaluated_on: str | None, licence: str) -> str:
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=evaluated_on or "",
            dataset_name=evaluated_on or "",
            metric_type="accuracy",
            metric_name=metric,
            metric_value=value,
        )
        for metric, value in accuracy.items()
    ]
    about = ModelCardData(
        license=licence,
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["dearkd", kind.replace(" ", "-"), "knowledge-distillation", "image-classification"],
        metrics=["accuracy"] if results else None,
        model_name=name if results else None,
        eval_results=results or None,
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

HUB_USE = """## Use

With transformers and timm; dearkd is not needed. `trust_remote_code` runs the two Python files beside this one.

```python
from transformers import pipeline

classify = pipeline("image-classification", model="FOLDER", trust_remote_code=True)  # FOLDER: where this file lies
print(classify("image.png"))
```

With timm alone:

```python
import sys

sys.path.insert(0, "FOLDER")
import modeling_dearkd  # registers the architecture with timm
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
data = timm.data.resolve_model_data_config(model)  # its input: size, mean, std
```
"""
