"""`dearkd jobs|watch|log|cancel|retry|pause|resume|priority`."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from dearkd.choices import Kind, Status
from dearkd.cli.output import AsJson, Limit, connect, json_of, note, print_json, print_list
from dearkd.errors import DearKDError
from dearkd.names import printable

if TYPE_CHECKING:
    from dearkd.answers import JobView
    from dearkd.client import Client

INTERRUPTED = 130
COLUMNS = {
    "ID": "id",
    "STATUS": "status",
    "DONE": "done",
    "RATE": "rate",
    "LEFT": "left",
    "NAME": "name",
    "CREATED": "created_at",
    "WAITS FOR": "waiting_for",
}


JobId = Annotated[str, typer.Argument(metavar="JOB", help="Its id (syn-… or run-…) or its name.")]
Pictures = Annotated[
    bool, typer.Option("--pictures/--no-pictures", help="Show the images at work, where the terminal can.")
]
Wait = Annotated[bool, typer.Option("--wait", help="Show its progress until it has ended; fail if it does.")]


def register(app: typer.Typer) -> None:
    app.command("jobs")(list_all)
    app.command("watch")(watch_job)
    app.command("log")(log)
    app.command("cancel")(cancel)
    app.command("retry")(retry)
    app.command("pause")(pause)
    app.command("resume")(resume)
    app.command("priority")(priority)


def list_all(
    kind: Annotated[Kind | None, typer.Option(help="Only jobs of this kind.")] = None,
    status: Annotated[Status | None, typer.Option(help="Only jobs in this state.")] = None,
    labels: Annotated[str | None, typer.Option(metavar="KEY=VALUE[,…]", help="Only jobs with these labels.")] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List synthesis jobs and training runs, newest first."""
    from dearkd.client import JOBS

    with connect() as client:
        each = [client.list_jobs(one, status=status, labels=labels) for one in JOBS if kind in (None, one)]
        found = heapq.merge(*each, key=lambda job: job.created_at, reverse=True)
        print_list(map(json_of if as_json else _row, found), COLUMNS, limit=limit, as_json=as_json)


def watch_job(job: JobId, pictures: Pictures = True, as_json: AsJson = False) -> None:
    """Show a job's progress, and the images at work, until it has ended; exits 1 if it failed or was canceled."""
    from dearkd.cli.references import identifier_of

    with connect() as client:
        follow(client, identifier_of(client, job, "job"), as_json=as_json, pictures=pictures)


def log(job: JobId, as_json: AsJson = False) -> None:
    """Print a job's log: what its attempts noted and why they ended, a line each."""
    from dearkd.cli.references import identifier_of

    with connect() as client:
        identifier = identifier_of(client, job, "job")
        text = client.get_log(identifier)
    if as_json:
        print_json({"id": identifier, "lines": text.splitlines()})
    else:
        print(printable(text, keep="\n"), end="")


def cancel(job: JobId, as_json: AsJson = False) -> None:
    """Cancel a job. What it finished stays, and `retry` goes on from there."""
    from dearkd.cli.references import identifier_of

    with connect() as client:
        _report(client.cancel_job(identifier_of(client, job, "job")), as_json=as_json)


def pause(job: JobId, as_json: AsJson = False) -> None:
    """Let a job stand still: it holds no worker, and loses nothing."""
    from dearkd.cli.references import identifier_of

    with connect() as client:
        _report(client.pause_job(identifier_of(client, job, "job")), as_json=as_json)


def resume(job: JobId, wait: Wait = False, as_json: AsJson = False) -> None:
    """Let a paused job go on."""
    from dearkd.cli.references import identifier_of

    with connect() as client:
        again = client.resume_job(identifier_of(client, job, "job"))
        submitted(client, again, wait=wait, as_json=as_json)


def priority(
    job: JobId,
    place: Annotated[Literal["low", "normal", "high"], typer.Argument(metavar="low|normal|high")],
    as_json: AsJson = False,
) -> None:
    """Change the place of a job among those that wait."""
    from dearkd.cli.references import identifier_of

    with connect() as client:
        _report(client.set_job_priority(identifier_of(client, job, "job"), place), as_json=as_json)


def retry(
    job: JobId,
    start: Annotated[
        Literal["last", "beginning"],
        typer.Option("--from", help="`beginning` deletes what it made so far, and starts over."),
    ] = "last",
    wait: Wait = False,
    as_json: AsJson = False,
) -> None:
    """Let a failed or canceled job go on from its finished shards or its last checkpoint."""
    from dearkd.cli.references import identifier_of

    with connect() as client:
        identifier = identifier_of(client, job, "job")
        again = client.retry_job(identifier, from_beginning=start == "beginning")
        if start == "beginning":
            note(f"{identifier} starts over: what it had made is deleted")
        submitted(client, again, wait=wait, as_json=as_json)


def submitted(client: Client, job: JobView, *, wait: bool, as_json: bool) -> None:
    """Print an accepted job's id and state or, with `wait`, its progress until it has ended."""
    if wait:
        follow(client, job.id, as_json=as_json)
        return
    _report(job, as_json=as_json)
    if not as_json:
        if job.waiting_for:
            note(f"it waits for {job.waiting_for}")
        note(f"follow it with `dearkd watch {job.id}`")


def follow(client: Client, identifier: str, *, as_json: bool, pictures: bool = True) -> None:
    """Show progress on stderr and the outcome on stdout.

    Raises:
        DearKDError: if the job failed or was canceled; with `as_json` an exit 1 after the job itself.
        typer.Exit: 130 on Ctrl-C, which ends the watching and not the job.
    """
    from dearkd.cli.watching import watch

    try:
        job = watch(client, identifier, Console(stderr=True), pictures=pictures and not as_json)
    except KeyboardInterrupt:
        note(f"{identifier} goes on: `dearkd watch {identifier}` shows it again, `dearkd cancel {identifier}` ends it")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print_json(json_of(job))
        if job.status != "succeeded":
            raise typer.Exit(1)
        return
    if job.status == "succeeded":
        result = " ".join(f"{kind} {made}" for kind, made in (job.result or {}).items() if isinstance(made, str))
        if ended := (job.result or {}).get("ended_early"):
            note(f"it ended early: {printable(ended['detail'])}")
        print(f"{identifier} succeeded: {result}")
        return
    code, message = (job.error.code, job.error.message) if job.error else (job.status, "on request")
    raise DearKDError(
        f"{identifier} {job.status}: {message}; `dearkd retry {identifier}` goes on from what was "
        "finished, with `--from beginning` it starts over",
        code=code,
    )


def _report(job: JobView, *, as_json: bool) -> None:
    if as_json:
        print_json(json_of(job))
    else:
        print(f"{job.id} {job.status}")


def _row(job: JobView) -> dict[str, Any]:
    from dearkd.cli.watching import count, rate, time_left

    running = job.status == "running"
    return json_of(job) | {
        "done": count(job.progress),
        "rate": rate(job.progress) if running else "",
        "left": time_left(job.progress) if running else "",
        "name": job.name,
    }
