"""Class folders: which there are, and the order in which they are labels."""

import codecs
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

from dearkd.choices import FolderOrder
from dearkd.data.dataset_splits import split_of_class
from dearkd.data.file_names import require_kept_name
from dearkd.data.folder_walk import Skipped, entries
from dearkd.data.image_intake import examine, shown
from dearkd.data.shard_info import CLASS_NAMES, read_class_names
from dearkd.specs.class_order import natural_order, parted_orders, stored_name


def find_classes(folder: Path, split: str | None, skipped: Skipped) -> dict[str, Path]:
    """Class folders by name (of a class divided into splits, the chosen one); files beside them are counted.

    Raises:
        typer.BadParameter: if there are none, or one, or they are a level above the classes, or a name cannot be kept.
    """
    folders, files = entries(folder, skipped)
    loose = [path for path in files if path.name != CLASS_NAMES]
    images = [path for path in loose if _looks_like_image(path)]
    for path in loose:
        skipped.add("image beside the class folders" if path in images else "no image", path)
    if not folders:
        if images:
            raise typer.BadParameter(
                f"{shown(folder)} holds {len(images)} images (such as {shown(images[0].name)}), but no class folders: "
                "put them in a folder for each class"
            )
        raise typer.BadParameter(
            f"{shown(folder)} holds neither *.tar shards nor class folders of images: give the folder above the class "
            "folders"
        )
    classes: dict[str, Path] = {}
    for path in folders:
        require_kept_name(path.name)
        name = stored_name(path.name)
        if name in classes:
            raise typer.BadParameter(
                f"{shown(folder)} holds {name!r} twice, in two forms of Unicode: merge the folders"
            )
        classes[name] = path
    classes = {name: split_of_class(path, split, skipped) for name, path in classes.items()}
    _require_level(folder, classes)
    return classes


def read_names_file(path: Path) -> list[str]:
    """Class names in the order of their labels: a JSON list, or one a line, with or without a byte order mark.

    Raises:
        InvalidInput: if it is a JSON list of other things.
        typer.BadParameter: if it is no UTF-8 text, or names nothing.
    """
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    if data.lstrip().startswith(b"["):
        return read_class_names(data, str(path))
    try:
        names = [line.strip() for line in data.decode().splitlines()]
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"{shown(path)} is no UTF-8 text ({error}): save it as UTF-8") from None
    while names and not names[-1]:
        names.pop()
    if not names or "" in names:
        line = names.index("") + 1 if names else 1
        raise typer.BadParameter(f"{shown(path)}: line {line} is empty; give one class name a line")
    return names


def _looks_like_image(path: Path) -> bool:
    """Tell whether a loose file is an image or is named as one."""
    try:
        return examine(path, 1) is not None
    except typer.BadParameter:
        return True


def label_names(
    folder: Path, found: Sequence[str], names: Sequence[str] | None, order: FolderOrder | None
) -> Sequence[str]:
    """The classes in the order of their labels.

    Args:
        folder: for the messages.
        found: the names of its class folders.
        names: their order, where it is known; may name more classes.
        order: how to sort them, where it is not.

    Raises:
        typer.BadParameter: if a folder is not named, or torchvision's and timm's labels differ and neither is chosen.
    """
    if names is not None:
        if order is not None:
            raise typer.BadParameter("class names are given in their order: leave out --class-order")
        return _require_named(folder, found, [stored_name(name) for name in names])
    if order is FolderOrder.number:
        return _by_number(found)
    if order is FolderOrder.natural:
        return natural_order(found)
    parted = parted_orders(found)
    if order is None and parted is not None:
        by_name, natural, where = parted
        raise typer.BadParameter(
            f"the order of the class folders in {shown(folder)} is not certain: by name they are {_begin(by_name)}, in "
            f"natural order {_begin(natural)} ({where}). Choose the one that the teacher was trained with: "
            "--class-order name (torchvision's), natural (timm's) or number; or give --class-names FILE or --teacher ID"
        )
    return sorted(found)


def _require_named(folder: Path, found: Sequence[str], names: Sequence[str]) -> Sequence[str]:
    known = set(names)
    if len(known) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise typer.BadParameter(f"the class names have {twice!r} twice: class folders need names of their own")
    unknown = sorted(set(found) - known)
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, n=1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise typer.BadParameter(
            f"the class names do not name the class folder {unknown[0]!r}{more} in {shown(folder)}{meant}: rename it, "
            "or correct the names"
        )
    return names


def _by_number(found: Sequence[str]) -> Sequence[str]:
    numbers: dict[int, str] = {}
    for name in found:
        try:
            number = int(name)
        except ValueError:
            raise typer.BadParameter(f"--class-order number: the class folder {name!r} is no whole number") from None
        if number in numbers:
            raise typer.BadParameter(f"--class-order number: {numbers[number]!r} and {name!r} are one number")
        numbers[number] = name
    return [numbers[number] for number in sorted(numbers)]


def _require_level(folder: Path, classes: Mapping[str, Path]) -> None:
    below = {name: entries(path, Skipped()) for name, path in classes.items()}
    if len(classes) == 1:
        (name,) = classes
        folders = [path.name for path in below[name][0]]
        remedy = "give the folder above several class folders"
        if len(folders) > 1:
            remedy = f"below it are {_begin(folders)}: give {shown(classes[name])}"
        raise typer.BadParameter(
            f"{shown(folder)} holds one class folder, {name!r}, and one class teaches nothing; {remedy}"
        )
    levels = [{path.name for path in folders} for folders, _ in below.values()]
    if len(levels[0]) > 1 and all(level == levels[0] for level in levels) and not any(f for _, f in below.values()):
        raise typer.BadParameter(
            f"every folder in {shown(folder)} ({_begin(list(classes))}) holds the folders {_begin(sorted(levels[0]))}, "
            "and no file: it is not certain which level are the classes; give a folder with one level of classes"
        )


def _begin(names: Sequence[str]) -> str:
    first = [shown(name) for name in names[:12]]
    return ", ".join(first) + (" …" if len(names) > 12 else "")
