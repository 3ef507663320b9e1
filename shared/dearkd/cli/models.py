"""`dearkd model list|show|pull|delete`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dearkd.cli.output import AsJson, Limit, connect, json_of, print_item, print_json, print_list, print_pulled

if TYPE_CHECKING:
    from dearkd.storage.catalog import Model

COLUMNS = {"ID": "id", "TOP-1": "top1", "ARCHITECTURE": "architecture", "CREATED": "created_at"}

Identifier = Annotated[str, typer.Argument(metavar="MODEL", help="Its id (mdl-…) or its name.")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Trained students.")
    app.add_typer(group, name="model")
    group.command("list")(list_all)
    group.command("show")(show)
    group.command("pull")(pull)
    group.command("delete")(delete)


def list_all(limit: Limit = 50, as_json: AsJson = False) -> None:
    """List models, newest first."""
    with connect() as client:
        models = client.list_models()
        print_list(map(json_of if as_json else _with_top1, models), COLUMNS, limit=limit, as_json=as_json)


def show(model: Identifier, as_json: AsJson = False) -> None:
    """Show a model."""
    from dearkd.cli.references import identifier_of

    with connect() as client:
        print_item(client.get_model(identifier_of(client, model, "model")), as_json=as_json)


def pull(
    model: Identifier,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    as_json: AsJson = False,
) -> None:
    """Fetch a model's files as they are stored, verified; `dearkd export` writes other formats."""
    from dearkd.cli.pulling import pull_model
    from dearkd.cli.references import identifier_of

    with connect() as client:
        files = pull_model(client, identifier_of(client, model, "model"), directory)
    print_pulled(directory, files, as_json=as_json)


def delete(model: Identifier, as_json: AsJson = False) -> None:
    """Delete a model that no job uses."""
    from dearkd.cli.references import identifier_of

    with connect() as client:
        identifier = identifier_of(client, model, "model")
        client.delete_model(identifier)
    if as_json:
        print_json({"deleted": identifier})


def _with_top1(model: Model) -> dict[str, Any]:
    return json_of(model) | {"top1": f"{model.accuracy.top1:.2%}" if model.accuracy else None}
