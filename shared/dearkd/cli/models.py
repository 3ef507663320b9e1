"""`dearkd model list|show|delete`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dearkd.cli.output import AsJson, Limit, connect, print_item, print_json, print_list

if TYPE_CHECKING:
    from dearkd.client import Json

COLUMNS = {"ID": "id", "TOP-1": "top1", "ARCHITECTURE": "architecture", "CREATED": "created_at"}

Identifier = Annotated[str, typer.Argument(metavar="MODEL", help="Its id: mdl-…")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Trained students.")
    app.add_typer(group, name="model")
    group.command("list")(list_all)
    group.command("show")(show)
    group.command("delete")(delete)


def list_all(limit: Limit = 50, as_json: AsJson = False) -> None:
    """List models, newest first."""
    with connect() as client:
        models = client.list_models()
        print_list(models if as_json else map(_with_top1, models), COLUMNS, limit=limit, as_json=as_json)


def show(model: Identifier, as_json: AsJson = False) -> None:
    """Show a model."""
    with connect() as client:
        print_item(client.get_model(model), as_json=as_json)


def delete(model: Identifier, as_json: AsJson = False) -> None:
    """Delete a model that no job uses."""
    with connect() as client:
        client.delete_model(model)
    if as_json:
        print_json({"deleted": model})


def _with_top1(model: Json) -> Json:
    accuracy = model.get("accuracy")
    return model | {"top1": f"{accuracy['top1']:.2%}" if accuracy else None}
