"""`dearkd teacher add|check|list|show|delete`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dearkd.cli.output import AsJson, Limit, connect, json_of, note, print_item, print_json, print_list
from dearkd.cli.teacher_check import check
from dearkd.cli.teacher_source import (
    Architecture,
    ClassName,
    ImageSize,
    InChans,
    Mean,
    ModelArg,
    NumClasses,
    StateDict,
    Std,
    fetched,
    given_fields,
    name_of,
    read_source,
)
from dearkd.data.file_names import require_kept_name
from dearkd.errors import InvalidInput

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

COMPLETE = {"architecture", "num_classes", "image_size", "mean", "std"}
"""With all of these given, a safetensors file is uploaded as it is."""

Identifier = Annotated[str, typer.Argument(metavar="TEACHER", help="Its id (tch-…) or its name.")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="CNNs whose knowledge is distilled.")
    app.add_typer(group, name="teacher")
    group.command("add")(add)
    group.command("check")(check)
    group.command("list")(list_all)
    group.command("show")(show)
    group.command("delete")(delete)


def add(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|FOLDER|hf-hub:NAME",
            help="Weights as safetensors or a checkpoint of torch; a folder with a config.json; a model of the Hub.",
        ),
    ],
    architecture: Architecture = None,
    num_classes: NumClasses = None,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    in_chans: InChans = None,
    name: Annotated[str | None, typer.Option(help="Default: the file's name.")] = None,
    class_name: ClassName = None,
    model_arg: ModelArg = None,
    state_dict: StateDict = None,
    as_json: AsJson = False,
) -> None:
    """Upload a CNN: its weights, and how to rebuild it around them. What no flag says is read from the file."""
    from tempfile import TemporaryDirectory

    given = given_fields(
        architecture=architecture,
        num_classes=num_classes,
        in_chans=in_chans,
        image_size=image_size,
        mean=mean,
        std=std,
        model_arg=model_arg,
        class_name=class_name,
    )
    given["name"] = name or name_of(source)
    require_kept_name(given["name"], "give the teacher another with --name")
    complete = given.keys() >= COMPLETE and not given["architecture"].startswith("torchvision:")
    if complete:
        given = {"in_chans": 3, "model_args": {}} | given
        _check(given)
    with TemporaryDirectory(prefix="dearkd-teacher-") as scratch:
        path = fetched(source)
        if complete and state_dict is None and _is_safetensors(path):
            body, weights = given, path
        else:
            body, weights = read_source(path, given, Path(scratch), state_dict)
        with connect() as client:
            teacher = client.create_teacher(body, weights)
    if as_json:
        print_json(json_of(teacher))
        return
    print(teacher.id)
    note(f"{teacher.name}: {teacher.parameters:,} parameters, {teacher.batch_norm_layers} BatchNorm layers")


def _is_safetensors(path: Path) -> bool:
    from dearkd.teacher_files.file_kinds import kind_of

    return path.is_file() and (path.suffix == ".safetensors" or kind_of(path) == "safetensors")


def _check(body: dict[str, Any]) -> None:
    from dearkd.specs import TeacherSpec

    try:
        TeacherSpec.check(body)
    except InvalidInput as error:
        raise typer.BadParameter(error.message) from None


def list_all(limit: Limit = 50, as_json: AsJson = False) -> None:
    """List teachers, newest first."""
    with connect() as client:
        print_list(map(json_of, client.list_teachers()), COLUMNS, limit=limit, as_json=as_json)


def show(teacher: Identifier, as_json: AsJson = False) -> None:
    """Show a teacher."""
    from dearkd.cli.references import identifier_of

    with connect() as client:
        print_item(client.get_registration(identifier_of(client, teacher, "teacher")), as_json=as_json)


def delete(teacher: Identifier, as_json: AsJson = False) -> None:
    """Delete a teacher that no job uses."""
    from dearkd.cli.references import identifier_of

    with connect() as client:
        identifier = identifier_of(client, teacher, "teacher")
        client.delete_teacher(identifier)
    if as_json:
        print_json({"deleted": identifier})
