"""`dearkd synth` and `dearkd train`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dearkd.choices import PresetName, Recipe
from dearkd.cli.fields import parse_assignments, read_spec
from dearkd.cli.jobs import Wait, submitted
from dearkd.cli.output import AsJson, connect, print_item

SpecFile = Annotated[
    Path | None,
    typer.Option("--spec", exists=True, dir_okay=False, readable=True, help="A spec as JSON; other options win."),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any field of the spec: seed=1, weights.boundary=0, classes=[0,1]"),
]
Seed = Annotated[int | None, typer.Option(help="Of everything random.")]
Name = Annotated[str | None, typer.Option(help="To tell it from others.")]


def register(app: typer.Typer) -> None:
    app.command("synth")(synth)
    app.command("train")(train)


def synth(
    teacher: Annotated[str, typer.Argument(metavar="TEACHER", help="Its id: tch-…")],
    preset: Annotated[
        PresetName | None,
        typer.Option(metavar="PRESET", help="auto (the default), published-imagenet or published-cifar."),
    ] = None,
    images_per_class: Annotated[int | None, typer.Option(help="Default: the preset's.")] = None,
    seed: Seed = None,
    name: Name = None,
    assignments: Assignments = None,
    spec: SpecFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what it would make, and at what cost.")] = False,
    wait: Wait = False,
    as_json: AsJson = False,
) -> None:
    """Synthesise a dataset from a teacher."""
    options = {"preset": preset, "images_per_class": images_per_class, "seed": seed, "name": name}
    body = _spec(spec, assignments, {"teacher": teacher} | options)
    with connect() as client:
        if dry_run:
            print_item(client.plan_synthesis_job(body), as_json=as_json)
        else:
            submitted(client, client.create_synthesis_job(body), wait=wait, as_json=as_json)


def train(
    dataset: Annotated[str, typer.Argument(metavar="DATASET_OR_JOB", help="ds-…, or syn-… to wait for its dataset.")],
    recipe: Annotated[Recipe | None, typer.Option(help="Default: by image size.")] = None,
    teacher: Annotated[str | None, typer.Option(help="tch-…; default: the dataset's.")] = None,
    eval_dataset: Annotated[str | None, typer.Option(help="ds-… to measure accuracy on while training.")] = None,
    seed: Seed = None,
    name: Name = None,
    assignments: Assignments = None,
    spec: SpecFile = None,
    wait: Wait = False,
    as_json: AsJson = False,
) -> None:
    """Train a vision transformer on a dataset, or on that which a synthesis job is making."""
    options = {"recipe": recipe, "teacher": teacher, "eval_dataset": eval_dataset, "seed": seed, "name": name}
    body = _spec(spec, assignments, {"dataset": dataset} | options)
    with connect() as client:
        submitted(client, client.create_training_run(body), wait=wait, as_json=as_json)


def _spec(path: Path | None, assignments: list[str] | None, options: dict[str, Any]) -> dict[str, Any]:
    """The file, over it `--set`, over that the options of their own."""
    from dearkd.specs.base import overlay

    given = {key: value for key, value in options.items() if value is not None}
    return overlay(overlay(read_spec(path), parse_assignments(assignments or [], "--set")), given)
