"""Teachers that a command line names: a file, a folder, a model of the Hub, and flags for what those do not say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dearkd.cli.fields import parse_assignments, parse_numbers
from dearkd.cli.output import connect, note
from dearkd.errors import InvalidInput, NotFound, Unavailable
from dearkd.imports import import_large
from dearkd.teacher_files.hub import is_hub_name

if TYPE_CHECKING:
    from dearkd.settings import Settings
    from dearkd.specs import TeacherSpec
    from dearkd.storage.file_cache import FileCache

Architecture = Annotated[
    str | None, typer.Option(help="A name of timm.list_models(), or torchvision:NAME. Default: found in the file.")
]
NumClasses = Annotated[int | None, typer.Option(help="Classes that it tells apart. Default: the file's.")]
ImageSize = Annotated[int | None, typer.Option(help="Side of its square input, in pixels.")]
Mean = Annotated[
    list[str] | None, typer.Option(help="Of pixels in [0, 1]: one number a channel, such as 0.48,0.46,0.41.")
]
Std = Annotated[list[str] | None, typer.Option(help="Like --mean.")]
InChans = Annotated[int | None, typer.Option(help="Channels of its input: 1 or 3. Default: the file's.")]
ClassName = Annotated[list[str] | None, typer.Option(help="Once for each class, in order.")]
ModelArg = Annotated[list[str] | None, typer.Option(help="KEY=VALUE for timm.create_model.")]
StateDict = Annotated[
    str | None, typer.Option(metavar="KEY", help="The weights to take where a checkpoint holds several.")
]


def given_fields(
    *,
    architecture: str | None,
    num_classes: int | None,
    in_chans: int | None,
    image_size: int | None,
    mean: list[str] | None,
    std: list[str] | None,
    model_arg: list[str] | None,
    class_name: list[str] | None,
) -> dict[str, Any]:
    """The fields of a `TeacherSpec` that flags give.

    Raises:
        typer.BadParameter: if a flag cannot be read.
    """
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
    return {field: value for field, value in given.items() if value is not None}


def fetched(source: str) -> Path:
    """The file or folder of a source, fetched where it is a model of the Hub.

    Raises:
        typer.BadParameter: if there is none.
    """
    if is_hub_name(source):
        from dearkd.teacher_files.hub import fetch

        return fetch(source)
    path = Path(source)
    if not path.exists():
        raise typer.BadParameter(
            f"{source} does not exist: give a file, a folder, or a model of the Hugging Face Hub as hf-hub:owner/name"
        )
    return path


def read_source(
    path: Path, given: dict[str, Any], scratch: Path, state_dict: str | None
) -> tuple[dict[str, Any], Path]:
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


def registered_teacher(reference: str, settings: Settings, cache: FileCache) -> tuple[TeacherSpec, Path]:
    """Spec and verified weights of a teacher by its id or name. The weights come from storage: the API serves none.

    Raises:
        NotFound: if there is none, or its weights are not in the storage that `DEARKD_STORAGE_URL` names.
        InvalidInput: if its registration has not ended, or has failed.
        Unavailable: if the API cannot be reached.
    """
    from dearkd.cli.references import identifier_of
    from dearkd.storage.catalog import Teacher, fetch_weights
    from dearkd.storage.objects import Storage

    with connect() as client:
        reference = identifier_of(client, reference, "teacher")
        found = client.get_registration(reference)
    if not isinstance(found, Teacher):
        raise InvalidInput(f"{reference} is {found.status}: see `dearkd teacher show {reference}`")
    try:
        return found.spec, fetch_weights(Storage.open(settings, fresh=False), found, cache)
    except (NotFound, Unavailable) as error:
        raise NotFound(
            f"{reference} is registered, but its weights are not in the storage that DEARKD_STORAGE_URL names: that "
            "must be the API's own",
            cause=error.message,
        ) from error


def name_of(source: str) -> str:
    """The file's name without the suffixes of checkpoints; the last part of a model's name on the Hub."""
    if is_hub_name(source):
        return source.partition("@")[0].rpartition("/")[2] or source
    path = Path(source)
    if path.is_dir():
        return path.resolve().name
    return path.name.removesuffix(".tar").removesuffix(".pth") if path.name.endswith(".pth.tar") else path.stem
