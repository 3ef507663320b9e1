"""`dearkd dataset add|list|show|pull|delete`."""

from pathlib import Path
from typing import Annotated, cast

import typer

from dearkd.choices import DatasetForm, FolderOrder
from dearkd.cli.hub_push import Public, Push, push_folder, require_pushable
from dearkd.cli.output import AsJson, Limit, connect, json_of, print_item, print_json, print_list, print_pulled

COLUMNS = {
    "ID": "id",
    "NAME": "name",
    "IMAGES": "num_samples",
    "CLASSES": "num_classes",
    "SHARDS": "shards",
    "CREATED": "created_at",
}

Identifier = Annotated[str, typer.Argument(metavar="DATASET", help="Its id (ds-…) or its name.")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Images to train or to evaluate on.")
    app.add_typer(group, name="dataset")
    group.command("add")(add)
    group.command("list")(list_all)
    group.command("show")(show)
    group.command("pull")(pull)
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
        FolderOrder | None,
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
    from dearkd.cli.dataset_intake import add_dataset
    from dearkd.data.class_folders import read_names_file
    from dearkd.data.image_folder import Reading
    from dearkd.data.image_intake import Channels

    if in_chans not in (None, 1, 3):
        raise typer.BadParameter(f"--in-chans {in_chans}: images are stored grey (1) or in colour (3)")
    reading = Reading(
        split=split,
        class_order=class_order,
        class_names=read_names_file(class_names) if class_names is not None else None,
        in_chans=cast(Channels | None, in_chans),
        resize=resize,
    )
    add_dataset(folder, name or folder.resolve().name, reading, teacher, dry_run=dry_run, as_json=as_json)


def list_all(limit: Limit = 50, as_json: AsJson = False) -> None:
    """List datasets, newest first."""
    with connect() as client:
        print_list(map(json_of, client.list_datasets()), COLUMNS, limit=limit, as_json=as_json)


def show(dataset: Identifier, as_json: AsJson = False) -> None:
    """Show a dataset's manifest."""
    from dearkd.cli.references import identifier_of

    with connect() as client:
        print_item(client.get_registration(identifier_of(client, dataset, "dataset")), as_json=as_json)


def pull(
    dataset: Identifier,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    form: Annotated[
        DatasetForm,
        typer.Option("--as", help="shards, as they are stored; hf: Parquet, with columns image and label."),
    ] = DatasetForm.shards,
    push: Push = None,
    public: Public = False,
    as_json: AsJson = False,
) -> None:
    """Fetch a dataset, verified: its shards for `dearkd evaluate` and `webdataset`.

    Or Parquet files for `datasets.load_dataset` and the Hugging Face Hub: --as hf.
    """
    from dearkd.cli.references import identifier_of

    require_pushable(push, public=public, is_hub_form=form is DatasetForm.hf)
    if form is DatasetForm.hf:
        from dearkd.cli.hub_view import pull_view as pull_dataset
    else:
        from dearkd.cli.pulling import pull_dataset

    with connect() as client:
        files = pull_dataset(client, identifier_of(client, dataset, "dataset"), directory)
    pushed = push_folder(directory, push, "dataset", public=public) if push is not None else None
    print_pulled(directory, files, as_json=as_json, **({"pushed": pushed} if pushed else {}))


def delete(dataset: Identifier, as_json: AsJson = False) -> None:
    """Delete a dataset that no job uses."""
    from dearkd.cli.references import identifier_of

    with connect() as client:
        identifier = identifier_of(client, dataset, "dataset")
        client.delete_dataset(identifier)
    if as_json:
        print_json({"deleted": identifier})
