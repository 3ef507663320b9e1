"""A dataset of more shards than a process may have open files: each that is held takes one."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dearkd.data.manifests import DatasetManifest, count_classes, datasets
from dearkd.data.shard_files import Sample, write_shard
from dearkd.identifiers import new_id
from dearkd.settings import Settings
from dearkd.storage.objects import Storage
from dearkd.vision.images import encode
from tests.support.bars import CLASSES, SIDE, bars

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

SHARDS = 150
FEW = 100

FETCH = """
import json, resource, sys
from pathlib import Path

from dearkd.data.manifests import datasets
from dearkd.errors import InvalidInput
from dearkd.settings import Settings
from dearkd.specs import TrainingSpec
from dearkd.storage.file_cache import FileCache
from dearkd.storage.objects import Storage
from dearkd_trainer.service.data import fetch_datasets, open_shards

told = json.loads(sys.argv[1])
settings = Settings(**told["settings"])
storage = Storage.open(settings)
manifest = datasets(storage).get(told["dataset"])
spec = TrainingSpec.resolve({"dataset": manifest.id, **told["posted"]}, manifest.facts, None)
hard = told["hard"] or resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (told["soft"], hard))
with FileCache(settings.cache_dir, settings.cache_bytes) as cache:
    try:
        shards, evaluated = fetch_datasets(storage, cache, spec, manifest, manifest if told["evaluated"] else None)
    except InvalidInput as error:
        print(json.dumps({"refused": error.message}))
    else:
        held = [isinstance(each, list) for each in (shards, evaluated) if each is not None]
        data = open_shards(shards, settings, num_classes=manifest.num_classes, in_chans=1)
        print(json.dumps({"held": held, "samples": len(data), "first": data[0][1] if held[0] else None}))
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(storage_url=f"file://{tmp_path}/storage", cache_dir=tmp_path / "cache")


@pytest.fixture
def dataset(settings: Settings, tmp_path: Path) -> DatasetManifest:
    storage, identifier, shards = Storage.open(settings), new_id("ds"), []
    for number, (image, label) in enumerate(bars(SHARDS)):
        path = tmp_path / f"train-{number:06d}.tar"
        shards.append(write_shard(path, [Sample(f"{number:04d}", encode(image, "png"), "png", label, {})]))
        storage.put(f"datasets/{identifier}/{path.name}", path)
    manifest = DatasetManifest(
        id=identifier,
        created_at=datetime.now(UTC),
        num_samples=SHARDS,
        num_classes=CLASSES,
        image_size=SIDE,
        in_chans=1,
        classes=count_classes(shards, None, CLASSES),
        shards=shards,
        prefix=f"datasets/{identifier}",
    )
    datasets(storage).create(manifest)
    return manifest


def fetched(settings: Settings, dataset: DatasetManifest, *, hard: int | None, **told: Any) -> dict[str, Any]:
    """What a process of that limit on open files makes of the dataset."""
    posted = {"teacher": None, "stage_one": {"distillation": "none", "weights": {"hidden": 0.0}}, "batch_size": 12}
    given = {
        "settings": settings.model_dump(mode="json", include={"storage_url", "cache_dir"}),
        "dataset": dataset.id,
        "soft": FEW,
        "hard": hard,
        "posted": posted | told.get("posted", {}),
        "evaluated": told.get("evaluated", False),
    }
    done = subprocess.run([sys.executable, "-c", FETCH, json.dumps(given)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_limit_is_raised_as_far_as_the_run_needs_and_may(settings: Settings, dataset: DatasetManifest) -> None:
    found = fetched(settings, dataset, hard=None, evaluated=True)
    assert found == {"held": [True, True], "samples": SHARDS, "first": next(iter(bars(1)))[1]}


def test_where_it_may_not_be_raised_shards_pass_or_the_run_is_refused(
    settings: Settings, dataset: DatasetManifest
) -> None:
    refused = fetched(settings, dataset, hard=FEW)["refused"]
    assert f"has {SHARDS} shards" in refused
    assert "set shuffle_shards" in refused
    assert not list(settings.cache_dir.rglob("*.tar"))  # before anything is fetched
    found = fetched(settings, dataset, hard=FEW, posted={"shuffle_shards": 4}, evaluated=True)
    assert found == {"held": [False, False], "samples": SHARDS, "first": None}
