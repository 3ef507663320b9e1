"""The walk through a folder: files to take, and a count, by reason, of those that are left out."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import typer

from dearkd.data.image_intake import shown

MAX_EXAMPLES = 3

# What systems and tools leave in folders; nobody means it as data. Hidden names (".…") are left out too.
SYSTEM_NAMES = frozenset(
    (
        "@eadir",
        "#recycle",
        "__macosx",
        "__pycache__",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "icon\r",
        "$recycle.bin",
        "lost+found",
        "system volume information",
    )
)


@dataclass(slots=True)
class Skipped:
    """Files that were left out: how many for each reason, and the first few of them."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, path: Path) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < MAX_EXAMPLES:
            examples.append(shown(path))

    def add_all(self, reason: str, folder: Path) -> None:
        """Count every file under a folder; links are not followed."""
        for parent, _, files in os.walk(folder):
            for name in files:
                self.add(reason, Path(parent) / name)


def kind_of_name(name: str) -> str | None:
    """The reason why what is so named is left out: "hidden", "system file", or None where it is not."""
    if name.lower() in SYSTEM_NAMES:
        return "system file"
    return "hidden" if name.startswith(".") else None


def entries(folder: Path, skipped: Skipped) -> tuple[list[Path], list[Path]]:
    """The folders and the regular files of a folder, sorted, through links; the rest is counted.

    Raises:
        typer.BadParameter: if the folder cannot be read.
    """
    folders, files = [], []
    try:
        found = sorted(folder.iterdir())
    except OSError as error:
        raise typer.BadParameter(f"{shown(folder)} cannot be read ({error.strerror}): change its permissions") from None
    for path in found:
        reason = kind_of_name(path.name)
        try:
            mode = path.stat().st_mode
        except OSError:
            skipped.add(reason or "broken link", path)
            continue
        if reason is not None:
            if stat.S_ISDIR(mode) and not path.is_symlink():
                skipped.add_all(reason, path)
            else:
                skipped.add(reason, path)
        elif stat.S_ISDIR(mode):
            folders.append(path)
        elif stat.S_ISREG(mode):
            files.append(path)
        else:
            skipped.add("no regular file", path)
    return folders, files


def walk(folder: Path, skipped: Skipped, *, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Path]:
    """All regular files at any depth, links to folders followed as torchvision does; a link into itself is counted."""
    about = folder.stat()
    here = (about.st_dev, about.st_ino)
    if here in above:
        skipped.add("link to a folder above itself", folder)
        return
    folders, files = entries(folder, skipped)
    yield from files
    for path in folders:
        yield from walk(path, skipped, above=above | {here})
