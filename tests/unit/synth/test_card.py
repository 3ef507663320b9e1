"""The dataset card as Hugging Face's own tools read it, and that it says what was done and nothing else."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import DatasetCard, DatasetCardData

from dearkd.cli.pulling import BESIDE_SHARDS
from dearkd.data.manifests import DatasetManifest, count_classes
from dearkd.data.shard_files import Sample, Shard, write_shard
from dearkd.specs import SynthesisSpec, TeacherSpec
from dearkd.storage.catalog import Teacher
from dearkd.vision.images import encode
from dearkd_synth.service.card import dataset_card

SPEC = TeacherSpec.check(
    {
        "name": "a | teacher",
        "architecture": "resnet10t",
        "num_classes": 3,
        "in_chans": 1,
        "image_size": 8,
        "mean": [0.5],
        "std": [0.5],
        "class_names": ["zero", "one | uno", "two"],
    }
)


def card(shards: list[Shard], **fields: Any) -> str:
    now = datetime.now(UTC)
    teacher = Teacher(
        id="tch-1", created_at=now, **SPEC.model_dump(), sha256="5" * 64, bytes=1, parameters=1, batch_norm_layers=1
    )
    posted = {"teacher": "tch-1", "images_per_class": 2, "classes": [0, 1]} | fields.pop("posted", {})
    manifest = {
        "id": "ds-1",
        "name": 'digits: "small" #1',
        "created_at": now,
        "num_samples": 4,
        "num_classes": 3,
        "image_size": 8,
        "in_chans": 1,
        "classes": count_classes(shards, SPEC.class_names, 3),
        "shards": shards,
        "prefix": "datasets/ds-1",
        "spec": SynthesisSpec.resolve(posted, SPEC).model_dump(mode="json"),
        "quality": {
            "teacher_accuracy": 0.5,
            "margin": 0.0,
            "outliers": [],
            "classes": {"1": {"teacher_accuracy": 0.25}},
        },
        "job": "syn-1",
        "seed": 0,
    }
    return dataset_card(DatasetManifest.model_validate(manifest | fields), teacher)


def shard(folder: Path) -> Shard:
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    samples = (
        Sample(f"{i:09d}", encode(image, "png"), "png", i % 2, {"label": i % 2}) for i, image in enumerate(images)
    )
    return write_shard(folder / "train-000000.tar", samples)


def test_the_metadata_are_hugging_faces(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card([shard(tmp_path)]))
    data = DatasetCard.load(tmp_path / "README.md").data.to_dict()
    assert data["pretty_name"] == 'digits: "small" #1'
    assert data["task_categories"] == ["image-classification"]
    assert data["size_categories"] == ["n<1K"]
    assert "synthetic" in data["tags"]


@pytest.mark.parametrize(
    ("samples", "size"),
    [
        (1, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (10**6, "1M<n<10M"),
        (10**7, "10M<n<100M"),
        (3 * 10**8, "100M<n<1B"),
    ],
)
def test_each_word_is_one_of_hugging_faces(tmp_path: Path, samples: int, size: str) -> None:
    """As the documentation of `DatasetCardData` lists them: its words alone are found by the Hub's filters."""
    data = DatasetCard(card([shard(tmp_path)], num_samples=samples), ignore_metadata_errors=False).data.to_dict()
    assert data["size_categories"] == [size]
    options = set(re.findall(r"(?<!\w)'([^'\s]+)'", DatasetCardData.__doc__ or ""))
    for name in ("size_categories", "annotations_creators", "source_datasets"):
        assert set(data[name]) <= options, name
    assert data["license"] == "unknown"
    # What is written again by Hugging Face's own class is the same.
    again = DatasetCard(f"---\n{DatasetCardData(**data).to_yaml()}\n---\n").data.to_dict()
    assert again == data


def test_the_picture_lies_beside_the_card(tmp_path: Path) -> None:
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", card([shard(tmp_path)]))
    assert pictures == ["preview.png"]  # the file that a job stores, and `dearkd dataset pull` fetches
    assert set(pictures) <= set(BESIDE_SHARDS)


@pytest.mark.parametrize("logits", [False, True])
def test_the_folder_loads_by_its_name_alone(tmp_path: Path, logits: bool) -> None:
    """With the card, other files beside the shards do not matter, and the split has its name."""
    import datasets

    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "README.md").write_text(card([shard(folder)], posted={"store_logits": logits}))
    for number in range(3):
        (folder / f"preview{number}.png").write_bytes(encode(torch.zeros(1, 8, 8, dtype=torch.uint8), "png"))
    (folder / "dataset.json").write_text("{}")
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {name: [int(row["cls"]) for row in split] for name, split in loaded.items()} == {"train": [0, 1, 0, 1]}
    features = loaded["train"].features
    assert features["cls"].names == ["zero", "one | uno", "two"]
    assert list(features) == ["png", "cls", "json"] + ["logits.npy"] * logits
    assert [row["json"]["label"] for row in loaded["train"]] == [0, 1, 0, 1]


def test_it_says_that_the_images_are_synthetic_from_which_teacher_and_how_good(tmp_path: Path) -> None:
    text = card([shard(tmp_path)])
    assert "**Every image here is synthetic.** 4 grey images of 2 classes" in text
    assert f"`a | teacher` (`resnet10t`, weights sha256 `{'5' * 64}`)" in text
    assert "(`teacher_accuracy`) | 0.5000 |" in text
    assert "(`margin`) | 0.0000 |" in text
    assert "`confidence`" not in text.partition("## Spec")[0]  # not known, so not said
    assert "| 1 | one \\| uno | 2 | 0.2500 |" in text
    assert "| 2 | two" not in text
    assert "timelapse" not in text  # there is none
    spec = json.loads(text.rpartition("```json\n")[2].partition("```")[0])
    assert spec["images_per_class"] == 2


HOSTILE = "x`](javascript:alert(1)) <img src=y onerror=z> | a\n# Trusted\x1b[2J\u202e ```"


def test_no_name_is_taken_for_markup(tmp_path: Path) -> None:
    classes = [{"index": 1, "name": HOSTILE, "samples": 2}]
    text = card([shard(tmp_path)], name=HOSTILE, classes=classes)
    assert "\n# Trusted" not in text
    assert "\n```\n# " not in text
    assert all(line.isprintable() for line in text.splitlines())
    (heading,) = [line for line in text.splitlines() if line.startswith("# ")]
    (row,) = [line for line in text.splitlines() if line.startswith("| 1 |")]
    assert len([cell for cell in row.replace("\\|", "").split("|") if cell.strip()]) == 4
    for line in (heading, row):
        assert "\\](javascript" in line
        assert "\\<img" in line
    (tmp_path / "README.md").write_text(text)
    assert DatasetCard.load(tmp_path / "README.md").data.to_dict()["pretty_name"].startswith("x`](javascript")


@pytest.mark.parametrize(
    ("weights", "said", "not_said"),
    [
        ({}, ["boundary-preserving"], ["Adaptive", "without its"]),
        ({"boundary": 0.0}, ["DeepInversion"], ["boundary-preserving", "Adaptive", "without its"]),
        ({"adaptive": 1.0, "batch_norm": 0.0}, ["Adaptive", "without its BatchNorm"], []),
    ],
)
def test_it_names_the_terms_that_took_part_and_no_others(
    tmp_path: Path, weights: dict[str, float], said: list[str], not_said: list[str]
) -> None:
    posted = {"weights": weights, "batch_size": 2, "classes_per_batch": 1, "shard_samples": 2}
    (method,) = [line for line in card([shard(tmp_path)], posted=posted).splitlines() if line.startswith("- Method")]
    assert all(words in method for words in said)
    assert not any(words in method for words in not_said)


def test_without_figures_and_with_many_classes_it_is_still_a_card(tmp_path: Path) -> None:
    many = [{"index": i, "name": str(i), "samples": 1} for i in range(101)]
    text = card([shard(tmp_path)], quality=None, classes=many)
    assert "of 101 classes" in text
    assert "| label |" not in text
