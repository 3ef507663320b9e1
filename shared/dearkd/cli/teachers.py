"""`dearkd teacher add|list|show|delete`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dearkd.cli.fields import parse_assignments, parse_numbers
from dearkd.cli.output import AsJson, Limit, connect, note, print_item, print_json, print_list
from dearkd.data.file_names import require_kept_name
from dearkd.errors import InvalidInput
from dearkd.specs import TeacherSpec

COLUMNS = {
    "ID": "id",
    "NAME": "name",
    "ARCHITECTURE": "architecture",
    "CLASSES": "num_classes",
    "CHANNELS": "in_chans",
    "SIZE": "image_size",
    "PARAMETERS": "parameters",
    "CREATED": "created_at",
}

Identifier = Annotated[str, typer.Argument(metavar="TEACHER", help="Its id: tch-…")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="CNNs whose knowledge is distilled.")
    app.add_typer(group, name="teacher")
    group.command("add")(add)
    group.command("list")(list_all)
    group.command("show")(show)
    group.command("delete")(delete)


def add(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="Weights, as safetensors.")],
    architecture: Annotated[str, typer.Option(help="A name of timm.list_models().")],
    num_classes: Annotated[int, typer.Option(help="Classes that it tells apart.")],
    image_size: Annotated[int, typer.Option(help="Side of its square input, in pixels.")],
    mean: Annotated[list[str], typer.Option(help="Of pixels in [0, 1]: one number a channel, such as 0.48,0.46,0.41.")],
    std: Annotated[list[str], typer.Option(help="Like --mean.")],
    in_chans: Annotated[int, typer.Option(help="Channels of its input: 1 or 3.")] = 3,
    name: Annotated[str | None, typer.Option(help="Default: the file's name.")] = None,
    class_name: Annotated[list[str] | None, typer.Option(help="Once for each class, in order.")] = None,
    model_arg: Annotated[list[str] | None, typer.Option(help="KEY=VALUE for timm.create_model.")] = None,
    as_json: AsJson = False,
) -> None:
    """Upload a CNN: its weights, and how to rebuild it around them."""
    name = name or file.stem
    require_kept_name(name, "give the teacher another with --name")
    body: dict[str, Any] = {
        "name": name,
        "architecture": architecture,
        "num_classes": num_classes,
        "in_chans": in_chans,
        "image_size": image_size,
        "mean": parse_numbers(mean, "--mean"),
        "std": parse_numbers(std, "--std"),
        "model_args": parse_assignments(model_arg or [], "--model-arg"),
    }
    if class_name:
        body["class_names"] = class_name
    try:
        TeacherSpec.check(body)
    except InvalidInput as error:
        raise typer.BadParameter(error.message) from None
    with connect() as client:
        teacher = client.create_teacher(body, file)
    if as_json:
        print_json(teacher)
        return
    print(teacher["id"])
    note(f"{teacher['name']}: {teacher['parameters']:,} parameters, {teacher['batch_norm_layers']} BatchNorm layers")


def list_all(limit: Limit = 50, as_json: AsJson = False) -> None:
    """List teachers, newest first."""
    with connect() as client:
        print_list(client.list_teachers(), COLUMNS, limit=limit, as_json=as_json)


def show(teacher: Identifier, as_json: AsJson = False) -> None:
    """Show a teacher."""
    with connect() as client:
        print_item(client.get_teacher(teacher), as_json=as_json)


def delete(teacher: Identifier, as_json: AsJson = False) -> None:
    """Delete a teacher that no job uses."""
    with connect() as client:
        client.delete_teacher(teacher)
    if as_json:
        print_json({"deleted": teacher})
