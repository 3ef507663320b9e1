"""`dearkd dataset add|list|show|delete`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from dearkd.cli.image_folder import read_folder
from dearkd.cli.output import AsJson, Limit, connect, note, print_item, print_json, print_list
from dearkd.client import Client, Json
from dearkd.errors import DearKDError, InvalidInput, Unavailable
from dearkd.identifiers import new_id
from dearkd.names import first_control, printable
from dearkd.settings import Settings
from dearkd.storage import Storage

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
    as_json: AsJson = False,
) -> None:
    """Copy images into storage and register them: a folder of class folders, or a WebDataset."""
    settings = Settings()
    name = name or folder.resolve().name
    if found := first_control(name):
        raise typer.BadParameter(f"the name {name!a} has the control character {found}: give another with --name")
    source = read_folder(folder)
    prefix = f"datasets/{new_id('ds')}"
    with connect() as client:
        if not client.is_ready():
            raise Unavailable(f"{client.url} answers, but is not ready: see its /readyz and its log")
        storage = Storage.open(settings)
        try:
            with Progress(console=Console(stderr=True), transient=True) as bar:
                task = bar.add_task(f"copying {escape(printable(str(folder)))}", total=source.total)
                for done in source.copy_to(storage, prefix):
                    bar.advance(task, done)
        except BaseException:
            storage.delete_prefix(prefix)
            raise
        dataset = _register(client, storage, prefix, name, settings)
    if as_json:
        print_json(dataset)
        return
    print(dataset["id"])
    note(f"{dataset['num_samples']:,} images in {len(dataset['shards'])} shards")


def _register(client: Client, storage: Storage, prefix: str, name: str, settings: Settings) -> Json:
    try:
        return client.create_dataset(prefix, name)
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
