"""Columns of a dataset as Hugging Face's `datasets` is told of them: in the header of a card, and in Parquet files."""

import json
from collections import Counter
from collections.abc import Sequence

from dearkd.names import printable


def class_labels(names: Sequence[str]) -> list[str]:
    """Make names that a `ClassLabel` takes, which are all different: those that are there twice get their index.

    ImageNet has two classes `crane`, a bird and a machine.
    """
    shown = [printable(name) for name in names]
    counts = Counter(shown)
    labels = [name if counts[name] == 1 else f"{name} ({index})" for index, name in enumerate(shown)]
    return labels if len(set(labels)) == len(labels) else [f"{name} ({index})" for index, name in enumerate(shown)]


def features_yaml(image: str, label: str, names: Sequence[str]) -> str:
    """Write `dataset_info:` of a card's header, which other features may follow.

    Args:
        image: the column of images.
        label: the column of class indices.
        names: a name for each index.
    """
    lines = [
        "dataset_info:",
        "  features:",
        f"  - name: {image}",
        "    dtype: image",
        f"  - name: {label}",
        "    dtype:",
        "      class_label:",
        "        names:",
    ]
    # A text in JSON is one in YAML, as long as what is not printable is escaped already.
    lines += [
        f"          '{index}': {json.dumps(name, ensure_ascii=False)}" for index, name in enumerate(class_labels(names))
    ]
    return "\n".join(lines) + "\n"
