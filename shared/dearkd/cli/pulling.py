"""Datasets and models on their way from the API to a folder here (`dearkd dataset pull`, `dearkd model pull`)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from dearkd.cli.output import note
from dearkd.client import Client
from dearkd.data.feature_maps import FEATURE_MAP
from dearkd.errors import CorruptData, DearKDError, NotFound
from dearkd.storage.file_cache import is_copy, verify_copy
from dearkd.storage.new_folder import require_new

BESIDE_SHARDS = (
    "dataset.json",
    "_info.json",
    "class_names.json",
    "README.md",
    "preview.png",
    "timelapse.webp",
    FEATURE_MAP,
)


@dataclass(frozen=True, slots=True)
class PulledFile:
    """A file to fetch; without `sha256` it may be missing, and is not checked."""

    name: str
    bytes: int | None = None
    sha256: str | None = None


def pull_dataset(client: Client, identifier: str, directory: Path) -> list[Path]:
    """Fetch a dataset's shards, verified, with its manifest, card and preview; returns the files.

    Raises:
        Conflict, CorruptData, NotFound, Unavailable: see `pull`.
    """
    manifest = client.get_dataset(identifier)
    files = [PulledFile(shard.name, shard.bytes, shard.sha256) for shard in manifest.shards]
    files += [PulledFile(name) for name in BESIDE_SHARDS]
    return pull(files, lambda name, path: client.download_dataset_file(identifier, name, path), directory)


def pull_model(client: Client, identifier: str, directory: Path) -> list[Path]:
    """Fetch a model's files, verified; returns them.

    Raises:
        Conflict, CorruptData, NotFound, Unavailable: see `pull`.
    """
    manifest = client.get_model(identifier)
    files = [PulledFile(file.name, file.bytes, file.sha256) for file in manifest.files]
    return pull(files, lambda name, path: client.download_model_file(identifier, name, path), directory)


def pull(files: Sequence[PulledFile], download: Callable[[str, Path], None], directory: Path) -> list[Path]:
    """Fetch files to a new folder, which is there once all of them are and hold what they should.

    What an earlier try has left in `NAME.part`, beside the folder, is checked and kept, so that it goes on from there.

    Args:
        files: what to fetch.
        download: fetches the file of a name to a path, whole or not at all.
        directory: a folder that does not exist, or an empty one.

    Raises:
        Conflict: if `directory` is there and not empty.
        CorruptData: if what came is not what the manifest says, or it names a file that would lie elsewhere.
        NotFound, Unavailable: as `download` raises them.
    """
    for file in files:
        if Path(file.name).name != file.name or file.name in (".", ".."):
            raise CorruptData(f"the manifest names {file.name!r}, which is no plain file name: ask who runs the API")
    directory = directory.absolute()
    require_new(directory)
    part = directory.with_name(f"{directory.name}.part")
    part.mkdir(parents=True, exist_ok=True)
    try:
        _fetch(files, download, part)
    except (DearKDError, OSError, KeyboardInterrupt):
        note(f"what has come so far is kept in {part}: the same command goes on from it")
        raise
    # A folder of an earlier try may hold what this dataset or model has not.
    wanted = {file.name for file in files}
    for path in part.iterdir():
        if path.name not in wanted:
            path.unlink()
    part.replace(directory)
    return sorted(directory.iterdir())


def _fetch(files: Sequence[PulledFile], download: Callable[[str, Path], None], part: Path) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    total = sum(file.bytes or 0 for file in files)
    with Progress(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(f"{len(files)} files", total=total)
        for file in files:
            path = part / file.name
            # What an earlier try has fetched, whole and unaltered, is kept.
            if (
                file.sha256 is None
                or file.bytes is None
                or not is_copy(path, name=file.name, sha256=file.sha256, size=file.bytes)
            ):
                try:
                    download(file.name, path)
                except NotFound:
                    if file.sha256 is not None:
                        raise
                    continue
                if file.sha256 is not None and file.bytes is not None:
                    try:
                        verify_copy(path, name=file.name, sha256=file.sha256, size=file.bytes)
                    except CorruptData:
                        path.unlink()
                        raise
            bar.advance(task, file.bytes or 0)
