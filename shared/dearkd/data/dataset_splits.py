"""Splits in folders and in names of shards: train, val, test … merged they would train on what is there to validate."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import typer

from dearkd.data.folder_walk import Skipped, entries
from dearkd.data.image_intake import shown
from dearkd.data.shard_info import ANY_SPLIT, split_of_shard

_FOLDER = re.compile(rf"(?:{ANY_SPLIT})[-_ ]?(?:set|data|images|imgs|split)?[-_ ]?\d*", re.IGNORECASE)


def split_of_folder(name: str) -> str | None:
    """The split that a folder's name means (train2017 is train), or None."""
    found = _FOLDER.fullmatch(name)
    return found.lastgroup if found else None


def is_chosen(name: str, kind: str | None, split: str) -> bool:
    """Tell whether a split of this name and kind is the one that was asked for; train asks for training too."""
    return name.lower() == split.lower() or (kind is not None and kind == split_of_folder(split))


def choose_shards(shards: Sequence[Path], split: str | None, folder: Path, skipped: Skipped) -> list[Path]:
    """Choose the shards of one split; the others are counted as skipped.

    Raises:
        typer.BadParameter: if the names tell of several splits and none is chosen, or none is of the chosen one.
    """
    kinds = {path: split_of_shard(path.name) for path in shards}
    found = sorted({kind for kind in kinds.values() if kind is not None})
    if split is None:
        if len(found) > 1:
            raise typer.BadParameter(
                f"{shown(folder)} holds shards of {len(found)} splits ({', '.join(found)}), and a dataset is one: "
                f"choose it with --split {found[-1] if 'train' not in found else 'train'}"
            )
        return list(shards)
    chosen = [path for path in shards if is_chosen(path.stem, kinds[path], split)]
    if not chosen:
        told = f"those that there are: {', '.join(found)}" if found else "their names tell of no split"
        raise typer.BadParameter(f"no shard in {shown(folder)} is of the split {split!r}; {told}")
    for path in shards:
        if path not in chosen:
            skipped.add("of another split", path)
    return chosen


def split_level(folder: Path, split: str | None, skipped: Skipped) -> Path:
    """The folder whose sub-folders are the classes: the chosen split's at whatever depth, else `folder` itself.

    Raises:
        typer.BadParameter: if there are splits and none is chosen, or the chosen one is not there.
    """
    found = _split_folders(folder, depth=3)
    names = [str(path.relative_to(folder)) for path in found]
    if split is None:
        if found:
            raise typer.BadParameter(
                f"{shown(folder)} holds splits ({_listed(names)}), not classes: choose one with --split "
                f"{found[0].name if 'train' not in map(split_of_folder, names) else 'train'}, or give its folder"
            )
        return folder
    chosen = [path for path in found if is_chosen(path.name, split_of_folder(path.name), split)]
    if not chosen:
        if _class_splits(folder):
            return folder
        there = f"those that there are: {_listed(names)}" if names else "there is none"
        raise typer.BadParameter(f"{shown(folder)} holds no split {split!r}; {there}")
    if len(chosen) > 1:
        several = _listed([str(path.relative_to(folder)) for path in chosen])
        raise typer.BadParameter(f"{shown(folder)} holds {split!r} several times ({several}): give the folder of one")
    _count_beside(folder, chosen[0], skipped)
    return chosen[0]


def split_of_class(folder: Path, split: str | None, skipped: Skipped) -> Path:
    """The folder with a class's images, where each class folder is divided into splits.

    Raises:
        typer.BadParameter: if it is, and none or a missing one is chosen.
    """
    folders, files = entries(folder, Skipped())
    splits = [path for path in folders if split_of_folder(path.name)]
    if len(splits) < 2 or len(splits) != len(folders):
        return folder
    chosen = [p for p in splits if split is not None and is_chosen(p.name, split_of_folder(p.name), split)]
    if len(chosen) != 1:
        names = [path.name for path in splits]
        raise typer.BadParameter(
            f"the class folder {shown(folder)} holds splits ({_listed(names)}): choose one with --split {names[0]}"
        )
    for path in splits:
        if path != chosen[0]:
            skipped.add_all("of another split", path)
    for path in files:
        skipped.add("of another split", path)
    return chosen[0]


def _split_folders(folder: Path, depth: int) -> list[Path]:
    """The folders of splits that hold class folders; those of the first level that has any."""
    folders, _ = entries(folder, Skipped())
    named = [path for path in folders if split_of_folder(path.name)]
    # A class may be named train or test: then it holds images, as the classes beside it do.
    splits = named if len(named) == len(folders) else [path for path in named if _holds_only_folders(path)]
    if splits or depth == 1:
        return splits
    # Splits of each class (cat/train, dog/train) are no level of their own.
    if len(folders) > 1 and _class_splits(folder):
        return []
    # Class folders with many sub-folders are not searched: a level of splits lies under few folders.
    return [found for path in folders[:16] for found in _split_folders(path, depth - 1)] if len(folders) <= 16 else []


def _class_splits(folder: Path) -> bool:
    """Tell whether every one of several class folders is divided into splits (cat/train, cat/val, dog/train …)."""
    folders, _ = entries(folder, Skipped())
    if len(folders) < 2:
        return False
    below = [entries(path, Skipped())[0] for path in folders]
    return all(paths and all(split_of_folder(path.name) for path in paths) for paths in below) and not any(
        _holds_only_folders(path) for paths in below for path in paths
    )


def _holds_only_folders(folder: Path) -> bool:
    folders, files = entries(folder, Skipped())
    return bool(folders) and not any(path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp") for path in files)


def _count_beside(top: Path, chosen: Path, skipped: Skipped) -> None:
    """Count what lies under `top` beside the way down to `chosen`."""
    here = top
    for part in chosen.relative_to(top).parts:
        folders, files = entries(here, skipped)
        for path in files:
            skipped.add("of no split", path)
        for path in folders:
            if path.name != part:
                skipped.add_all("of another split" if split_of_folder(path.name) else "of no split", path)
        here /= part


def _listed(names: Iterable[str]) -> str:
    names = [shown(name) for name in names]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
