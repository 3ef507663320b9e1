"""`dearkd teacher add|list|show|delete`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dearkd.cli.fields import parse_assignments, parse_numbers
from dearkd.cli.output import AsJson, Limit, connect, note, print_item, print_json, print_list
from dearkd.data.file_names import require_kept_name
from dearkd.errors import InvalidInput
from dearkd.imports import import_large
from dearkd.teacher_files.hub import is_hub_name

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
    architecture: Annotated[
        str | None, typer.Option(help="A name of timm.list_models(), or torchvision:NAME. Default: found in the file.")
    ] = None,
    num_classes: Annotated[int | None, typer.Option(help="Classes that it tells apart. Default: the file's.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of its square input, in pixels.")] = None,
    mean: Annotated[
        list[str] | None, typer.Option(help="Of pixels in [0, 1]: one number a channel, such as 0.48,0.46,0.41.")
    ] = None,
    std: Annotated[list[str] | None, typer.Option(help="Like --mean.")] = None,
    in_chans: Annotated[int | None, typer.Option(help="Channels of its input: 1 or 3. Default: the file's.")] = None,
    name: Annotated[str | None, typer.Option(help="Default: the file's name.")] = None,
    class_name: Annotated[list[str] | None, typer.Option(help="Once for each class, in order.")] = None,
    model_arg: Annotated[list[str] | None, typer.Option(help="KEY=VALUE for timm.create_model.")] = None,
    state_dict: Annotated[
        str | None, typer.Option(metavar="KEY", help="The weights to take where a checkpoint holds several.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Upload a CNN: its weights, and how to rebuild it around them. What no flag says is read from the file."""
    from tempfile import TemporaryDirectory

    from dearkd.teacher_files.hub import fetch

    given: dict[str, Any] = {
        "architecture": architecture,
        "num_classes": num_classes,
        "in_chans": in_chans,
        "image_size": image_size,
        "mean": parse_numbers(mean, "--mean") if mean else None,
        "std": parse_numbers(std, "--std") if std else None,
        "model_args": parse_assignments(model_arg, "--model-arg") if model_arg else None,
        "class_names": class_name or None,
    }
    given = {field: value for field, value in given.items() if value is not None}
    given["name"] = name or _name_of(source)
    require_kept_name(given["name"], "give the teacher another with --name")
    complete = given.keys() >= COMPLETE and not given["architecture"].startswith("torchvision:")
    if complete:
        given = {"in_chans": 3, "model_args": {}} | given
        _check(given)
    with TemporaryDirectory(prefix="dearkd-teacher-") as scratch:
        path = fetch(source) if is_hub_name(source) else _existing(source)
        if complete and state_dict is None and _is_safetensors(path):
            body, weights = given, path
        else:
            body, weights = _read(path, given, Path(scratch), state_dict)
        with connect() as client:
            teacher = client.create_teacher(body, weights)
    if as_json:
        print_json(teacher)
        return
    print(teacher["id"])
    note(f"{teacher['name']}: {teacher['parameters']:,} parameters, {teacher['batch_norm_layers']} BatchNorm layers")


def _read(path: Path, given: dict[str, Any], scratch: Path, state_dict: str | None) -> tuple[dict[str, Any], Path]:
    """Spec and safetensors of whatever a user has. Only this needs torch here, and only for this it is imported."""
    try:
        found = import_large("dearkd.teacher_files.intake").read_teacher(path, given, scratch, state_dict=state_dict)
    except InvalidInput as error:
        if error.code == "usage":
            raise typer.BadParameter(error.message) from None
        raise
    for remark in found.remarks:
        note(remark)
    return found.body, found.weights


def _existing(source: str) -> Path:
    path = Path(source)
    if not path.exists():
        raise typer.BadParameter(
            f"{source} does not exist: give a file, a folder, or a model of the Hugging Face Hub as hf-hub:owner/name"
        )
    return path


def _is_safetensors(path: Path) -> bool:
    from dearkd.teacher_files.file_kinds import kind_of

    return path.is_file() and (path.suffix == ".safetensors" or kind_of(path) == "safetensors")


def _name_of(source: str) -> str:
    """The file's name without the suffixes of checkpoints; the last part of a model's name on the Hub."""
    if is_hub_name(source):
        return source.partition("@")[0].rpartition("/")[2] or source
    path = Path(source)
    if path.is_dir():
        return path.resolve().name
    return path.name.removesuffix(".tar").removesuffix(".pth") if path.name.endswith(".pth.tar") else path.stem


def _check(body: dict[str, Any]) -> None:
    from dearkd.specs import TeacherSpec

    try:
        TeacherSpec.check(body)
    except InvalidInput as error:
        raise typer.BadParameter(error.message) from None


def list_all(limit: Limit = 50, as_json: AsJson = False) -> None:
    """List teachers, newest first."""
    with connect() as client:
        print_list(client.list_teachers(), COLUMNS, limit=limit, as_json=as_json)


def show(teacher: Identifier, as_json: AsJson = False) -> None:
    """Show a teacher."""
    from dearkd.cli.references import identifier_of

    with connect() as client:
        print_item(client.get_teacher(identifier_of(client, teacher, "teacher")), as_json=as_json)


def delete(teacher: Identifier, as_json: AsJson = False) -> None:
    """Delete a teacher that no job uses."""
    from dearkd.cli.references import identifier_of

    with connect() as client:
        identifier = identifier_of(client, teacher, "teacher")
        client.delete_teacher(identifier)
    if as_json:
        print_json({"deleted": identifier})
