"""`dearkd up|open|worker|doctor|gc`: the programs that run here, rather than what is asked of them."""

from __future__ import annotations

import json
import os
import shlex
import signal
import threading
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

from dearkd.cli.output import AsJson, connect, note, print_json
from dearkd.folders import keep_files_private

STATES = {"ok": ("green", "ok"), "remark": ("yellow", "remark"), "problem": ("bold red", "problem")}


def register(app: typer.Typer) -> None:
    app.command("up")(up)
    app.command("open")(open_dashboard)
    app.command("worker")(worker)
    app.command("doctor")(doctor)
    app.command("gc")(gc)


def up(
    data: Annotated[Path, typer.Option(file_okay=False, help="Folder of everything that it keeps.")] = Path(
        "dearkd-data"
    ),
    port: Annotated[
        int, typer.Option(min=0, max=65535, envvar="DEARKD_PORT", help="Of the API; 0 takes a free one.")
    ] = 8000,
    synth_workers: Annotated[
        int,
        typer.Option(min=1, max=64, help="They share the CPU's cores; a job uses as many as its `parallelism` says."),
    ] = 1,
    adopt_storage: Annotated[
        bool, typer.Option("--adopt-storage", help="Take the storage that is there, also if Redis knows another.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run everything here: Redis (unless DEARKD_REDIS_URL is set), the API, synth workers and a trainer worker."""
    from dearkd.local.parts import with_synth_workers
    from dearkd.local.up import UpTree
    from dearkd.settings import Settings

    console = Console(stderr=True)
    ending = threading.Event()

    def say(line: str) -> None:
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def end(number: int, frame: FrameType | None) -> None:
        if ending.is_set():
            tree.hurry()
        else:
            ending.set()
            raise KeyboardInterrupt

    keep_files_private()
    parts = with_synth_workers(synth_workers)
    tree = UpTree(data, port, host=Settings().host, parts=parts, say=say, adopt_storage=adopt_storage)
    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGTERM, end)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup means that it should outlive its terminal
        signal.signal(signal.SIGHUP, end)
    try:
        with console.status("starting…"):
            tree.start()
        if as_json:
            facts = {"url": tree.url, "pid": os.getpid(), "data": str(tree.data), "storage": tree.storage_url}
            print(json.dumps(facts), flush=True)
        else:
            _announce(tree.url, tree.data, tree.storage_url)
        tree.wait()
    except KeyboardInterrupt:
        note("stopping all parts; once more to kill them at once")
    finally:
        ending.set()
        tree.stop()


def _announce(url: str, data: Path, storage_url: str) -> None:
    from dearkd.settings import Settings

    console = Console(highlight=False)
    console.print(f"[bold green]dearkd is up at [link={url}]{url}[/link][/bold green]  (Ctrl-C stops it)")
    lines = [f"data     {data}", f"logs     {data / 'logs'}"]
    # Commands in another terminal find the defaults by themselves.
    if url != Settings.model_fields["url"].default:
        lines.append(f"clients  export DEARKD_URL={url}")
    if data != Path("dearkd-data").absolute():
        lines.append(f"         export DEARKD_STORAGE_URL={shlex.quote(storage_url)}")
    console.print("\n".join(lines), markup=False, soft_wrap=True)


def open_dashboard(as_json: AsJson = False) -> None:
    """Open the dashboard of the API that DEARKD_URL names in a browser, and print its address."""
    import webbrowser

    with connect() as client:
        client.is_ready()  # or the browser would say that nothing is there
        address = f"{client.url}/"
    opened = webbrowser.open(address)
    if as_json:
        print_json({"url": address, "opened": opened})
        return
    print(address)
    if not opened:
        note("no browser was found here: open that address in one")


def worker(
    kind: Annotated[Literal["synth", "trainer"], typer.Argument(help="What it works on.")], as_json: AsJson = False
) -> None:
    """Run one worker, for compose and clusters; it ends on SIGTERM, handing its work back."""
    from dearkd.work.worker import main

    keep_files_private()
    raise typer.Exit(main(kind))


def doctor(
    resubmit: Annotated[
        bool, typer.Option("--resubmit", help="Retry jobs that did not end and that the API knows no more.")
    ] = False,
    adopt_storage: Annotated[
        bool,
        typer.Option("--adopt-storage", help="First take the storage that is there, also if Redis knows another."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check what this machine lacks, and say how to mend it; exits 1 if something that is needed is missing."""
    from pydantic import ValidationError

    from dearkd.local.doctor import adopt, examine
    from dearkd.local.findings import Finding
    from dearkd.settings import Settings, broken_settings

    findings: list[Finding] = []
    console = Console()

    def examined() -> Iterator[Finding]:
        try:
            settings = Settings()
        except ValidationError as error:
            for line in broken_settings(error):
                yield Finding("settings", "problem", line, "mend it in the environment, and look again for the rest")
            return
        if adopt_storage:
            yield adopt(settings)
        yield from examine(settings, resubmit=resubmit)

    for finding in examined():
        findings.append(finding)
        if not as_json:
            style, word = STATES[finding.state]
            console.print(Text.assemble((f"{word:8}", style), f"{finding.subject}: {finding.detail}"), soft_wrap=True)
            if finding.remedy:
                console.print(Text(f"        → {finding.remedy}"), soft_wrap=True)
    healthy = all(finding.state != "problem" for finding in findings)
    if as_json:
        print_json({"ok": healthy, "checks": [asdict(finding) for finding in findings]})
    raise typer.Exit(0 if healthy else 1)


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove abandoned uploads and what failed and canceled jobs left in storage, once DEARKD_RETENTION is over.

    Nothing that a manifest names is touched, and nothing of a job that has not ended.
    """
    from dearkd.local.garbage import Collector
    from dearkd.settings import Settings
    from dearkd.storage.objects import Storage

    settings = Settings()
    storage = Storage.open(settings, fresh=False)
    collector = Collector(storage, retention_seconds=settings.retention, now=datetime.now(UTC))
    found = [garbage for garbage in collector.find() if dry_run or collector.remove(garbage)]
    count, size = len(found), sum(garbage.bytes for garbage in found)
    if as_json:
        objects = [{"key": one.key, "bytes": one.bytes, "reason": one.reason} for one in found]
        print_json({"removed": not dry_run, "objects": objects, "bytes": size})
        return
    console = Console()
    for one in found:
        console.print(Text(f"{one.key}  ({one.bytes} bytes, {one.reason})"), soft_wrap=True)
    console.print(Text(f"{count} objects of {size} bytes {'would be removed' if dry_run else 'removed'}"))
