"""A dataset as Hugging Face's `datasets` and the Hub's viewer know datasets of images: Parquet, `image` and `label`.

The shards load there too, but by the suffixes of their members: `png`, or `jpg` of another sample, and `cls`. No
setting renames them, and scripts that would are no longer run. A shard becomes one Parquet file; image files stay as
they are.
"""

import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from dearkd.data.hub_features import class_labels, features_yaml
from dearkd.data.manifests import DatasetManifest
from dearkd.data.shard_files import Shard
from dearkd.data.shard_reader import Reader
from dearkd.names import markdown, printable

IMAGE, LABEL = "image", "label"
ROWS = 100
"""Rows of a group, the least that is read at a time; as `datasets` writes images."""
SHA256 = b"dearkd_shard_sha256"
"""Metadata of a Parquet file: the shard that it was made of."""

_HEADER = re.compile(r"\A---\n(.*?)^---\n", re.DOTALL | re.MULTILINE)
_BLOCK = re.compile(r"^(?:configs|dataset_info):.*\n(?:[ -].*\n)*", re.MULTILINE)
_SNIPPET = re.compile(r"```python\nimport webdataset.*?```\n", re.DOTALL)
LOADING = '```python\nfrom datasets import load_dataset\n\ndataset = load_dataset("FOLDER", split="train")\n```\n'


def parquet_name(shard: Shard) -> str:
    return f"{Path(shard.name).stem}.parquet"


def write_parquet(source: Path, shard: Shard, names: Sequence[str], target: Path) -> None:
    """Write a verified shard as Parquet, whole or not at all; a hundred images are in memory at a time.

    Args:
        source: the tar.
        shard: of the manifest.
        names: of the classes, by index.
        target: of the Parquet file.

    Raises:
        CorruptData: naming the shard and the sample, if a tar or the header of an image cannot be read.
        ImportError: without pyarrow.
    """
    import pyarrow as pa
    from pyarrow import parquet

    columns = {
        IMAGE: {"_type": "Image"},
        LABEL: {"names": class_labels(names), "_type": "ClassLabel"},
    }
    about = {b"huggingface": json.dumps({"info": {"features": columns}}).encode(), SHA256: shard.sha256.encode()}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([(IMAGE, image), (LABEL, pa.int64())], metadata=about)
    part = target.with_name(f"{target.name}.part")
    try:
        with parquet.ParquetWriter(part, schema) as writer:
            rows = _rows(source, len(names))
            while some := list(islice(rows, ROWS)):
                writer.write_table(pa.Table.from_pylist(some, schema=schema))
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def is_made_of(path: Path, shard: Shard) -> bool:
    """Tell whether a Parquet file is there, whole, and was made of this shard."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        found = parquet.read_schema(path).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return False
    return bool(found.get(SHA256) == shard.sha256.encode())


def view_card(dataset: DatasetManifest, card: str | None) -> str:
    """Write the `README.md` of a view: that of the dataset with another header, or a short one where it has none."""
    config = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: '*.parquet'\n"
    config += features_yaml(IMAGE, LABEL, dataset.class_names)
    header = _HEADER.match(card or "")
    if card is not None and header is not None:
        kept = _BLOCK.sub("", header[1]).replace("- webdataset\n", "")
        body = card[header.end() :]
        changed, count = _SNIPPET.subn(LOADING, body)
        text = changed if count else f"{body}\n{LOADING}"
        return f"---\n{kept}{config}---\n{text}"
    title = dataset.name or dataset.id
    shown = json.dumps(printable(title), ensure_ascii=False)
    about = f"{dataset.num_samples:,} images of {dataset.num_classes:,} classes.\n"
    text = card if card is not None else f"# {markdown(title)}\n\n{about}"
    about = f"pretty_name: {shown}\nlicense: unknown\ntask_categories:\n- image-classification\n"
    return f"---\n{about}{config}---\n\n{text}\n{LOADING}"


def _rows(source: Path, num_classes: int) -> Iterator[dict[str, Any]]:
    reader = Reader(source, num_classes=num_classes)
    with source.open("rb") as file:
        for record in reader:
            with reader.open_image(record) as image:
                suffix = (image.format or "").lower()
            file.seek(record.image.offset)
            data = file.read(record.image.size)
            yield {IMAGE: {"bytes": data, "path": f"{record.key}.{suffix}"}, LABEL: record.label}
