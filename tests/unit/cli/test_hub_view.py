"""`dearkd dataset pull --as hf`, as Hugging Face's own library reads it."""

import hashlib
import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml
from huggingface_hub import DatasetCard
from PIL import Image

from dearkd.cli.hub_view import pull_view
from dearkd.client import Client
from dearkd.data.hub_features import class_labels, features_yaml
from dearkd.data.manifests import DatasetManifest, count_classes
from dearkd.data.parquet_view import view_card
from dearkd.data.shard_files import Sample, Shard, write_shard
from dearkd.data.shard_reader import Reader
from dearkd.errors import CorruptData, Unavailable
from tests.support.stand_in_api import StandInApi

NAMES = ["crane", 'no: "yes"\\ #', "crane", "Œuvre 🐦"]
LABELS = ["crane (0)", 'no: "yes"\\ #', "crane (2)", "Œuvre 🐦"]
CARD = """---
pretty_name: "birds"
tags:
- synthetic
- webdataset
configs:
- config_name: default
  data_files:
  - split: train
    path: train-*.tar
dataset_info:
  features:
  - name: png
    dtype: image
---

# birds

```python
import webdataset as wds
```

**Every image here is synthetic.**
"""


def encoded(pixels: np.ndarray, file_format: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format)
    return file.getvalue()


@pytest.fixture(params=["grey", "colour"])
def shards(request: pytest.FixtureRequest, tmp_path: Path) -> list[Shard]:
    """Shards of noise; those of colour mix formats, as registered ones may."""
    shape = (6, 8) if request.param == "grey" else (6, 8, 3)
    kinds = [("png", "PNG")] if request.param == "grey" else [("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP")]
    noise = np.random.default_rng(0)
    (tmp_path / "stored").mkdir()
    found = []
    for number in range(2):
        samples = []
        for n in range(110):  # more than a group of rows
            suffix, file_format = kinds[n % len(kinds)]
            data = encoded(noise.integers(256, size=shape, dtype=np.uint8), file_format)
            samples.append(Sample(f"{n:04d}", data, suffix, (n + number) % 4, {}))
        found.append(write_shard(tmp_path / "stored" / f"train-{number:06d}.tar", samples))
    return found


@pytest.fixture
def manifest(shards: list[Shard]) -> DatasetManifest:
    return DatasetManifest(
        id="ds-1",
        name="birds",
        created_at=datetime.now(UTC),
        num_samples=220,
        num_classes=4,
        image_size=None,
        in_chans=3,
        classes=count_classes(shards, NAMES, 4),
        shards=shards,
        prefix="datasets/ds-1",
    )


@pytest.fixture
def served(api: StandInApi, manifest: DatasetManifest, tmp_path: Path) -> StandInApi:
    api.answer("GET /v1/datasets/ds-1", manifest.model_dump(mode="json"))
    api.answer("GET /v1/datasets/ds-1/files/dataset.json", b"{}")
    api.answer("GET /v1/datasets/ds-1/files/preview.png", encoded(np.zeros((4, 4), dtype=np.uint8), "PNG"))
    api.answer("GET /v1/datasets/ds-1/files/train-000000.tar", (tmp_path / "stored/train-000000.tar").read_bytes())
    return api


def load(folder: str, tmp_path: Path, **arguments: Any) -> Any:
    return datasets.load_dataset(folder, cache_dir=str(tmp_path / "hf"), split="train", **arguments)


@pytest.mark.parametrize("with_card", [True, False])
def test_load_dataset_has_the_images_the_labels_and_their_names(
    served: StandInApi, manifest: DatasetManifest, tmp_path: Path, with_card: bool
) -> None:
    served.answer("GET /v1/datasets/ds-1/files/train-000001.tar", (tmp_path / "stored/train-000001.tar").read_bytes())
    if with_card:
        served.answer("GET /v1/datasets/ds-1/files/README.md", CARD.encode())
    files = pull_view(Client(served.url), "ds-1", tmp_path / "view")
    names = ["README.md", "dataset.json", "preview.png", "train-000000.parquet", "train-000001.parquet"]
    assert [path.name for path in files] == names
    expected = []
    for shard in manifest.shards:
        path = tmp_path / "stored" / shard.name
        tar = path.read_bytes()
        expected += [(tar[record.image.offset :][: record.image.size], record.label) for record in Reader(path)]
    by_files = load("parquet", tmp_path, data_files=str(tmp_path / "view" / "*.parquet"))
    for found in (load(str(tmp_path / "view"), tmp_path), by_files):
        assert found.features["label"].names == LABELS
        assert found.column_names == ["image", "label"]
        assert found["label"] == [label for _, label in expected]
        for row, (data, _) in zip(found, expected, strict=True):
            with Image.open(io.BytesIO(data)) as image:
                assert row["image"].mode == image.mode
                np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(image))
    raw = by_files.cast_column("image", datasets.Image(decode=False))
    digests = [hashlib.sha256(row["image"]["bytes"]).digest() for row in raw]
    assert digests == [hashlib.sha256(data).digest() for data, _ in expected]
    card = DatasetCard.load(tmp_path / "view" / "README.md")
    assert card.data.pretty_name == "birds"
    assert "# birds" in card.text
    assert "load_dataset(" in card.text
    assert "webdataset" not in card.content
    assert ("synthetic" in card.text) == with_card


@pytest.mark.parametrize("shards", ["grey"], indirect=True)
def test_what_breaks_off_goes_on_and_what_is_altered_does_not_come(served: StandInApi, tmp_path: Path) -> None:
    second = (tmp_path / "stored/train-000001.tar").read_bytes()
    served.problem("GET /v1/datasets/ds-1/files/train-000001.tar", 503, "unavailable", "no storage")
    served.answer("GET /v1/datasets/ds-1/files/train-000001.tar", second[:-1] + b"!")
    served.problem("GET /v1/datasets/ds-1/files/train-000001.tar", 404, "not_found", "gone")
    served.answer("GET /v1/datasets/ds-1/files/train-000001.tar", second)
    client, target = Client(served.url), tmp_path / "view"
    for error, words in ((Unavailable, "no storage"), (CorruptData, "has sha256"), (CorruptData, "but gone")):
        with pytest.raises(error, match=words):
            pull_view(client, "ds-1", target)
        assert not target.exists()
    pull_view(client, "ds-1", target)
    fetched = [request.path.rpartition("/")[2] for request in served.requests if request.method == "GET"]
    assert fetched.count("train-000000.tar") == 1
    assert not list(target.glob("*.tar*"))


def test_names_of_classes_are_a_class_labels(manifest: DatasetManifest) -> None:
    for names in (NAMES, ["a", "a (2)", "a"], ["tab\t", "\x1b[2J", "\u202e"], ["null", "1", "", " "]):
        labels = class_labels(names)
        assert datasets.ClassLabel(names=labels).names == labels
        header = yaml.safe_load(features_yaml("png", "cls", names))["dataset_info"]["features"]
        assert datasets.Features._from_yaml_list(header)["cls"].names == labels
    for card in (None, "no header\n", "---\na: 1\nconfigs:\n- x\n---\nbody\n"):
        header = DatasetCard(view_card(manifest, card)).data.to_dict()
        assert header["configs"][0]["data_files"] == [{"split": "train", "path": "*.parquet"}]
