"""`dearkd dataset add|list|show|delete`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console
from rich.progress import Progress

from dearkd.cli.output import AsJson, Limit, connect, note, print_item, print_json, print_list
from dearkd.client import Client, Json
from dearkd.data.class_folders import ClassOrder, read_names_file
from dearkd.data.file_names import require_kept_name
from dearkd.data.image_folder import Reading, read_folder
from dearkd.data.image_intake import Channels, shown
from dearkd.errors import DearKDError, InvalidInput, Unavailable
from dearkd.identifiers import new_id
from dearkd.settings import Settings
from dearkd.specs.class_order import ClassOrder as Order
from dearkd.storage.objects import Storage

COLUMNS = {
    "ID": "id",
    "NAME": "name",
    "IMAGES": "num_samples",
    "CLASSES": "num_classes",
    "SHARDS": "shards",
    "CREATED": "created_at",
}

Identifier = Annotated[str, typer.Argument(metavar="DATASET", help="Its id: ds-…")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Images to train or to evaluate on.")
    app.add_typer(group, name="dataset")
    group.command("add")(add)
    group.command("list")(list_all)
    group.command("show")(show)
    group.command("delete")(delete)


def add(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", exists=True, file_okay=False, readable=True, help="Class folders of images, or *.tar shards."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="Default: the folder's name.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Take this split (train, val, …) where the folder holds several.")
    ] = None,
    class_order: Annotated[
        ClassOrder | None,
        typer.Option(help="Labels by name (torchvision), natural order (timm) or number, where these differ."),
    ] = None,
    class_names: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            readable=True,
            help="Classes in the order of their labels: one a line, or a JSON list.",
        ),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="ID", help="Take class names, their order and channels from this teacher.")
    ] = None,
    in_chans: Annotated[
        int | None, typer.Option(metavar="1|3", help="Store grey (1) or colour (3). Default: 1 if all are grey.")
    ] = None,
    resize: Annotated[
        int | None, typer.Option(min=8, max=4096, help="Store larger images with a short side of this many pixels.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Check and print what would be copied; copy nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Copy images into storage and register them: a folder of class folders, or a WebDataset."""
    settings = Settings()
    name = name or folder.resolve().name
    require_kept_name(name, "give the dataset another with --name")
    if in_chans not in (None, 1, 3):
        raise typer.BadParameter(f"--in-chans {in_chans}: images are stored grey (1) or in colour (3)")
    reading = Reading(
        split=split,
        class_order=class_order,
        class_names=read_names_file(class_names) if class_names is not None else None,
        in_chans=cast(Channels | None, in_chans),
        resize=resize,
    )
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
        order = _said_order(reading, given=class_names is not None or teacher is not None or source.is_listed)
        dataset = _register(client, storage, prefix, name, order, settings)
    if as_json:
        print_json(dataset | {"copied": summary, "skipped": summary["skipped"]})
        return
    print(dataset["id"])
    note(f"{dataset['num_samples']:,} images in {len(dataset['shards'])} shards")


def _as_teacher(teacher: Json, reading: Reading) -> Reading:
    names = teacher.get("class_names")
    if reading.class_names is None and reading.class_order is None:
        if not names:
            raise typer.BadParameter(f"{teacher['id']} has no class names: give --class-names FILE or --class-order")
        reading = replace(reading, class_names=names)
    return replace(reading, in_chans=reading.in_chans or teacher["in_chans"])


def _say(summary: Json, console: Console) -> None:
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


def _said_order(reading: Reading, *, given: bool) -> Order | None:
    """The order of the labels as the user gave it; a `class_names.json` beside shards gives the names alone."""
    if reading.class_order is not None:
        return reading.class_order.value
    return "given" if given else None


def _register(
    client: Client, storage: Storage, prefix: str, name: str, order: Order | None, settings: Settings
) -> Json:
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


def list_all(limit: Limit = 50, as_json: AsJson = False) -> None:
    """List datasets, newest first."""
    with connect() as client:
        print_list(client.list_datasets(), COLUMNS, limit=limit, as_json=as_json)


def show(dataset: Identifier, as_json: AsJson = False) -> None:
    """Show a dataset's manifest."""
    with connect() as client:
        print_item(client.get_dataset(dataset), as_json=as_json)


def delete(dataset: Identifier, as_json: AsJson = False) -> None:
    """Delete a dataset that no job uses."""
    with connect() as client:
        client.delete_dataset(dataset)
    if as_json:
        print_json({"deleted": dataset})
