"""Datasets on their way from the API to a folder that `datasets.load_dataset` takes (`dearkd dataset pull --as hf`)."""

import importlib
from pathlib import Path

from dearkd.cli.pulling import PulledFile, pull
from dearkd.client import Client
from dearkd.data.parquet_view import is_made_of, parquet_name, view_card, write_parquet
from dearkd.errors import CorruptData, NotFound
from dearkd.storage.file_cache import verify_copy

CARD, PREVIEW, TIMELAPSE, MANIFEST = "README.md", "preview.png", "timelapse.webp", "dataset.json"


def pull_view(client: Client, identifier: str, directory: Path) -> list[Path]:
    """Fetch a dataset's shards, one at a time and verified, and keep each as Parquet; returns the files.

    What an earlier try has made stays, as of `pull`.

    Raises:
        Conflict, CorruptData, Unavailable: see `pull`; `CorruptData` also for a shard that is gone.
        ImportError: without pyarrow, before anything is fetched.
    """
    importlib.import_module("pyarrow")
    dataset = client.get_dataset(identifier)
    shards = {parquet_name(shard): shard for shard in dataset.shards}

    def fetch(name: str, path: Path) -> None:
        if name == CARD:
            path.write_text(view_card(dataset, _card(client, identifier, path)), encoding="utf-8")
            return
        shard = shards.get(name)
        if shard is None:
            client.download_dataset_file(identifier, name, path)
            return
        if is_made_of(path, shard):
            return
        tar = path.with_name(f"{name}.tar")
        try:
            client.download_dataset_file(identifier, shard.name, tar)
            verify_copy(tar, name=shard.name, sha256=shard.sha256, size=shard.bytes)
            write_parquet(tar, shard, dataset.class_names, path)
        except NotFound:
            raise CorruptData(
                f"{dataset.id}: {shard.name} is named by the manifest, but gone: ask who runs the API"
            ) from None
        finally:
            tar.unlink(missing_ok=True)

    files = [PulledFile(name, shard.bytes) for name, shard in shards.items()]
    files += [PulledFile(name) for name in (CARD, PREVIEW, TIMELAPSE, MANIFEST)]
    return pull(files, fetch, directory)


def _card(client: Client, identifier: str, beside: Path) -> str | None:
    original = beside.with_name(f"{CARD}.original")
    try:
        client.download_dataset_file(identifier, CARD, original)
        return original.read_text(encoding="utf-8", errors="replace")
    except NotFound:
        return None
    finally:
        original.unlink(missing_ok=True)
