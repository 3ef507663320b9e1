"""Images of a folder on their way into storage: checked, copied, registered (`dearkd dataset add`)."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import typer
from rich.console import Console
from rich.progress import Progress

from dearkd.answers import RegisteredDataset
from dearkd.choices import ClassOrder
from dearkd.cli.output import connect, json_of, note, print_json
from dearkd.client import Client
from dearkd.data.file_names import require_kept_name
from dearkd.data.image_folder import Reading, read_folder
from dearkd.data.image_intake import Channels, shown
from dearkd.errors import DearKDError, InvalidInput, Unavailable
from dearkd.identifiers import new_id
from dearkd.settings import Settings
from dearkd.storage.catalog import Teacher
from dearkd.storage.objects import Storage


def add_dataset(
    folder: Path, name: str, reading: Reading, teacher: str | None, *, dry_run: bool, as_json: bool
) -> None:
    """Copy a folder's images into storage, register them, and print the dataset's id; say what was changed or left out.

    Args:
        teacher: id of the one whose class names and channels decide where `reading` does not.

    Raises:
        typer.BadParameter: if the folder or a choice breaks a rule.
        DearKDError: if the API or storage refuses; what was copied is removed unless the API may be using it.
    """
    settings = Settings()
    require_kept_name(name, "give the dataset another with --name")
    given = reading.class_names is not None or teacher is not None
    prefix = f"datasets/{new_id('ds')}"
    with connect() as client:
        if teacher is not None:
            reading = _as_teacher(client.get_teacher(teacher), reading)
        source = read_folder(folder, reading)
        if not dry_run and not client.is_ready():
            raise Unavailable(f"{client.url} answers, but is not ready: see its /readyz and its log")
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(f"{'checking' if dry_run else 'copying'} {shown(folder)}", total=source.total)
            for done in source.check():
                bar.advance(task, done)
            summary = source.summary()
            _say(summary, bar.console)
            if not dry_run:
                storage = Storage.open(settings)
                try:
                    for done in source.copy_to(storage, prefix):
                        bar.advance(task, done)
                except BaseException:
                    storage.delete_prefix(prefix)
                    raise
        if dry_run:
            if as_json:
                print_json(summary)
            return
        order = _said_order(reading, given=given or source.is_listed)
        dataset = _register(client, storage, prefix, name, order, settings)
    if as_json:
        print_json(json_of(dataset) | {"copied": summary, "skipped": summary["skipped"]})
        return
    print(dataset.id)
    note(f"{dataset.num_samples:,} images in {len(dataset.shards)} shards")


def _as_teacher(teacher: Teacher, reading: Reading) -> Reading:
    if reading.class_names is None and reading.class_order is None:
        if not teacher.class_names:
            raise typer.BadParameter(f"{teacher.id} has no class names: give --class-names FILE or --class-order")
        reading = replace(reading, class_names=teacher.class_names)
    return replace(reading, in_chans=reading.in_chans or cast(Channels, teacher.in_chans))


def _say(summary: dict[str, Any], console: Console) -> None:
    """Print what will be copied, what is changed and what is left out."""

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    if "classes" in summary:
        last = summary["classes"] - 1
        first_class, last_class = shown(summary["first_class"]), shown(summary["last_class"])
        say(f"{summary['classes']:,} classes: label 0 is {first_class}, label {last} is {last_class}")
    if "images" in summary:
        colours = "grey" if summary["in_chans"] == 1 else "colour"
        say(f"{summary['images']:,} images, {colours}, about {summary['bytes']:,} bytes")
    else:
        say(f"{summary['shards']:,} shards, {summary['bytes']:,} bytes")
    empty = summary.get("classes_without_images", [])
    if empty:
        say(f"{len(empty):,} classes have 0 images: {', '.join(shown(name) for name in empty[:5])}")
    for what, count in summary.get("converted", {}).items():
        say(f"{what}: {count:,}")
    for reason, count in summary["skipped"].items():
        say(f"left out, {reason}: {count:,} ({', '.join(summary['skipped_examples'][reason])})")


def _said_order(reading: Reading, *, given: bool) -> ClassOrder | None:
    """The order of the labels as the user gave it; a `class_names.json` beside shards gives the names alone."""
    if reading.class_order is not None:
        return reading.class_order.value
    return "given" if given else None


def _register(
    client: Client, storage: Storage, prefix: str, name: str, order: ClassOrder | None, settings: Settings
) -> RegisteredDataset:
    try:
        return client.create_dataset(prefix, name, class_order=order)
    except Unavailable as error:
        # Perhaps the API took it and goes on reading: what it reads must stay.
        raise Unavailable(f"{error.message}; the copy stays under {prefix} in storage", code=error.code) from error
    except DearKDError as error:
        storage.delete_prefix(prefix)
        if error.code == "no_shards":
            raise InvalidInput(
                f"{error.message}; it was copied to {settings.storage_url}, and DEARKD_STORAGE_URL must name the "
                "storage that the API uses",
                code=error.code,
                errors=error.errors,
            ) from error
        raise
