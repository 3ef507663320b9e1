"""`dearkd evaluate` of a dataset that is larger than the cache, over HTTP, and its bar of progress."""

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dearkd.cli import main
from dearkd.client import Client
from dearkd.data.manifests import DatasetManifest, count_classes, datasets
from dearkd.data.shard_files import Sample, Shard, write_shard
from dearkd.identifiers import new_id
from dearkd.settings import Settings
from dearkd.specs import StudentSpec, Task
from dearkd.storage.objects import Storage
from dearkd.vision.images import encode
from dearkd_trainer.model.export import model_config, save_model
from dearkd_trainer.model.student import create_student
from tests.support.bars import CLASSES, SIDE, bars
from tests.support.services import database, redis_server, serving

__all__ = ["redis_server"]

SHARDS, EACH = 5, 9
PADDING = 2**17
"""Bytes beside each image: together more than the least that DEARKD_CACHE_BYTES may be."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    spec = StudentSpec(
        architecture="dearkd_micro_patch8_32",
        image_size=SIDE,
        patch_size=4,
        embed_dim=16,
        depth=2,
        num_heads=2,
        mhca_blocks=1,
        drop_path_rate=0.0,
        distilled=False,
    )
    student = create_student(spec, CLASSES, 1).eval()
    task = Task(num_classes=CLASSES, in_chans=1, image_size=SIDE, mean=[0.4], std=[0.3])
    save_model(tmp_path / "model", student, model_config(spec, student, task))
    return tmp_path / "model"


@pytest.fixture
def shards(tmp_path: Path) -> list[Shard]:
    (tmp_path / "shards").mkdir()
    images = list(bars(SHARDS * EACH))
    return [
        write_shard(
            tmp_path / "shards" / f"train-{number:06d}.tar",
            (Sample(f"{n}", encode(x, "png"), "png", y, {}, {"padding": bytes(PADDING)}) for n, (x, y) in mine),
        )
        for number, mine in enumerate(enumerate(images[start::SHARDS]) for start in range(SHARDS))
    ]


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *map(str, arguments)])
    captured = capsys.readouterr()
    assert ended.value.code == 0, captured.err
    return captured.out, captured.err


@pytest.mark.services
def test_a_dataset_larger_than_the_cache_has_the_figures_of_the_whole_one(
    redis_server: str,
    model: Path,
    shards: list[Shard],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    largest = max(shard.bytes for shard in shards)
    cache = tmp_path / "cache"
    monkeypatch.setenv("DEARKD_CACHE_DIR", str(cache))
    monkeypatch.setenv("DEARKD_CACHE_BYTES", str(largest * 3 // 2))
    settings = Settings(
        redis_url=database(redis_server, 13), storage_url=f"file://{tmp_path}/storage", cache_dir=tmp_path / "api-cache"
    )
    storage, identifier = Storage.open(settings), new_id("ds")
    for shard in shards:
        storage.put(f"datasets/{identifier}/{shard.name}", tmp_path / "shards" / shard.name)
    datasets(storage).create(
        DatasetManifest(
            id=identifier,
            created_at=datetime.now(UTC),
            num_samples=SHARDS * EACH,
            num_classes=CLASSES,
            image_size=SIDE,
            in_chans=1,
            classes=count_classes(shards, None, CLASSES),
            shards=shards,
            prefix=f"datasets/{identifier}",
        )
    )
    fetched, sizes = Counter[str](), list[int]()
    download = Client.download_dataset_file

    def measured(client: Client, dataset: str, name: str, path: Path, **named: Any) -> None:
        download(client, dataset, name, path, **named)
        fetched[name] += 1
        sizes.append(sum(file.stat().st_size for file in cache.rglob("*") if file.suffix != ".lock" and file.is_file()))

    monkeypatch.setattr(Client, "download_dataset_file", measured)
    with serving(settings, tmp_path) as api:
        monkeypatch.setenv("DEARKD_URL", api.url)
        streamed = json.loads(evaluated(capsys, model, identifier, "--json", "--batch-size", "7")[0])
    whole = json.loads(evaluated(capsys, model, tmp_path / "shards", "--json", "--batch-size", "7")[0])
    assert streamed.pop("dataset") == identifier
    assert whole.pop("dataset") == str(tmp_path / "shards")
    assert streamed == whole
    assert streamed["attention_distance"]["heads"]
    assert fetched == {shard.name: 1 for shard in shards}
    assert max(sizes) < 2 * largest


def test_the_bar_is_there_on_a_terminal_alone(
    model: Path,
    shards: list[Shard],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DEARKD_CACHE_DIR", str(tmp_path / "cache"))
    arguments: list[Any] = [model, tmp_path / "shards"]
    done = f"{SHARDS * EACH}/{SHARDS * EACH}"
    assert done not in evaluated(capsys, *arguments)[1]
    monkeypatch.setenv("FORCE_COLOR", "1")  # for rich, the sign of a terminal
    monkeypatch.setenv("COLUMNS", "100")
    assert done in evaluated(capsys, *arguments)[1]
    assert evaluated(capsys, *arguments, "--json")[1] == ""
