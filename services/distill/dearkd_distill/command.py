"""`dearkd distill`: a transformer out of a CNN's file, with no server."""

from pathlib import Path
from typing import Annotated

import typer

from dearkd.choices import FolderOrder
from dearkd.cli.fields import parse_assignments, parse_time
from dearkd.cli.output import AsJson, note, print_json
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
    given_fields,
)
from dearkd.errors import InvalidInput

INTERRUPTED = 130
REPORT = "report.html"


def register(app: typer.Typer) -> None:
    """Plug the command into the CLI (entry point group `dearkd.commands`)."""
    app.command("distill")(run)


def run(
    teacher: Annotated[
        str,
        typer.Argument(
            metavar="FILE|FOLDER|hf-hub:NAME",
            help="A CNN: safetensors or a checkpoint of torch; a folder with a config.json; a model of the Hub.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder, or that of an earlier try, which goes on.")],
    images: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, metavar="DIR", help="Train on these real images; none are made."),
    ] = None,
    evaluate_on: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, metavar="DIR", help="Real images to measure the student on."),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="About how long it may take: 30m, 2h. Fewer images and epochs.")
    ] = None,
    architecture: Architecture = None,
    num_classes: NumClasses = None,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    in_chans: InChans = None,
    class_name: ClassName = None,
    model_arg: ModelArg = None,
    state_dict: StateDict = None,
    class_order: Annotated[
        FolderOrder | None, typer.Option(help="Of class folders that the teacher does not name: by name, number, …")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    synthesis: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A field of the synthesis: images_per_class=100.")
    ] = None,
    training: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A field of the training: stage_one.epochs=20.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a transformer from a CNN's file in one go, with no server."""
    seconds = parse_time(budget, "--budget") if budget is not None else None
    task = given_fields(
        architecture=architecture,
        num_classes=num_classes,
        in_chans=in_chans,
        image_size=image_size,
        mean=mean,
        std=std,
        model_arg=model_arg,
        class_name=class_name,
    )
    from dearkd_distill import distill

    try:
        done = distill(
            teacher,
            out,
            images=images,
            evaluate_on=evaluate_on,
            budget=seconds,
            seed=seed,
            synthesis=parse_assignments(synthesis or [], "--synthesis"),
            training=parse_assignments(training or [], "--training"),
            state_dict=state_dict,
            class_order=class_order,
            **task,
        )
    except InvalidInput as error:
        if error.code == "usage":
            raise typer.BadParameter(error.message) from None
        raise
    except KeyboardInterrupt:
        note(f"what is finished stays in {out}: the same command goes on from there")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print_json(done.report | {"directory": str(done.directory)})
        return
    print(done.directory)
    if done.top1 is not None:
        note(f"top-1 {done.top1:.2%} on {evaluate_on}")
    if (done.directory / REPORT).is_file():
        note(f"everything on one page: {done.directory / REPORT}")
    note(f"`dearkd export {out} NEW_FOLDER --to onnx` or `--to hf` makes it run elsewhere")
