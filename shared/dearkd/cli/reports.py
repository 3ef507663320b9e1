"""`dearkd report`: the page that a training run leaves with its model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dearkd.cli.output import AsJson, connect, note, print_json

if TYPE_CHECKING:
    from dearkd.client import Client

REPORT = "report.html"


def register(app: typer.Typer) -> None:
    app.command("report")(report)


def report(
    of: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL|DIR", help="Id or name of a model or a run, or a folder that a run has left."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Keep it here.", show_default="MODEL.html")
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch the report of a run: one page with curves, results by class, predictions and how to use the model."""
    if Path(of).is_dir():
        model, path = None, _of_folder(Path(of), out)
    else:
        with connect() as client:
            model, path = _of_api(client, of, out)
    if open_:
        import webbrowser

        if not webbrowser.open(path.absolute().as_uri()):
            note("no browser was found here: open that file in one")
    if as_json:
        print_json({"model": model, "report": str(path)})
    else:
        print(path)


def _of_folder(folder: Path, out: Path | None) -> Path:
    """The report in a folder, or its copy where one was asked for."""
    from dearkd.errors import InvalidInput

    path = folder / REPORT
    if not path.is_file():
        raise InvalidInput(f"{folder} holds no {REPORT}: give a folder that a run or a distillation has left")
    if out is None:
        return path
    out.write_bytes(path.read_bytes())
    return out


def _of_api(client: Client, reference: str, out: Path | None) -> tuple[str, Path]:
    """The model's id, and the local copy of its report, which is verified."""
    from dearkd.cli.references import identifier_of
    from dearkd.errors import InvalidInput, NotFound
    from dearkd.storage.file_cache import verify_copy

    identifier = identifier_of(client, reference, "model", "job")
    if not identifier.startswith("mdl-"):
        job = client.get_job(identifier)
        made = (job.result or {}).get("model")
        if made is None:
            is_run = job.kind == "training"
            remedy = "a run's report comes with its model" if is_run else "give a training run, which leaves one"
            raise InvalidInput(f"{identifier} ({job.kind}) is {job.status} and has no model: {remedy}")
        identifier = made
    model = client.get_model(identifier)
    listed = next((file for file in model.files if file.name == REPORT), None)
    if listed is None:
        raise NotFound(
            f"{identifier} has no {REPORT}: it was made by an older dearkd, or its worker's log says what failed; "
            "`dearkd evaluate MODEL DATASET --out DIR` measures it again"
        )
    path = out or Path(f"{identifier}.html")
    part = path.with_name(f"{path.name}.part")
    try:
        client.download_model_file(identifier, REPORT, part, resume=False)
        verify_copy(part, name=REPORT, sha256=listed.sha256, size=listed.bytes)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return identifier, path
