"""The command line, `dearkd …`. Exits 0 (ok), 1 (failed: also a job that did not succeed) or 2 (wrong usage).

Commands of the services come from the entry point group `dearkd.commands`: an entry has its command's name and names a
function `register(app)`, which is loaded when that command is asked for. `dearkd --help` names dearkd's own.

Importing this imports typer and rich and next to nothing else; what a command needs is imported where it is used.
"""

import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

import typer
from typer.main import get_command

import dearkd
from dearkd.cli import datasets, jobs, keys, models, processes, reports, submit, teachers
from dearkd.cli.output import print_error
from dearkd.cli.streams import discard_stdout, flush_streams, prepare_streams
from dearkd.errors import DearKDError, InvalidInput

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

# The one public name among typer's usage errors, which come from click or, in newer ones, from its own copy of it.
UsageError: type[Exception] = typer.BadParameter.__mro__[2]


_ALL = ("api", "synth", "trainer")
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "up": _ALL,
    "demo": _ALL,
    "distill": ("synth", "trainer"),
    "api": ("api",),
    "worker synth": ("synth",),
    "worker trainer": ("trainer",),
    "evaluate": ("trainer",),
    "export": ("trainer",),
    "predict": ("trainer",),
}
"""The extras of this package that each command needs: without them it would start, and fail midway or in a child."""

SUMMARIES = {
    "api": "Serve the control API and the dashboard.",
    "demo": "Make a ViT out of a CNN's weights alone, on real handwritten digits.",
    "distill": "Train a transformer from a CNN's file in one go, with no server.",
    "evaluate": "Measure a trained student on a dataset.",
    "export": "Write a trained student to a folder, for timm, ONNX Runtime or the Hugging Face Hub.",
    "predict": "Classify images with a trained student, beside its teacher.",
}
"""The services' commands as the list of all shows them: loading them, or looking for others', would take longer."""


def _version(asked: bool) -> None:
    if asked:
        print(dearkd.__version__)
        raise typer.Exit


def application(command: str | None = None) -> typer.Typer:
    """The command of that name among others, or all that there are."""
    app = typer.Typer(
        name="dearkd",
        help="Train a vision transformer from a CNN alone.",
        pretty_exceptions_enable=False,
        # Boxes and colours are for a terminal; what draws them takes longer to import than all else here.
        rich_markup_mode="rich" if sys.stdout.isatty() else None,
    )

    @app.callback()
    def options(
        version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    ) -> None:
        pass

    processes.register(app)
    teachers.register(app)
    datasets.register(app)
    submit.register(app)
    jobs.register(app)
    models.register(app)
    reports.register(app)
    keys.register(app)
    ours = {info.name for info in app.registered_commands} | {group.name for group in app.registered_groups}
    if command is not None and command not in ours:
        from importlib.metadata import entry_points

        for entry_point in entry_points(group="dearkd.commands", name=command):
            _plug_in(app, entry_point)
            ours.add(command)
    for name, summary in SUMMARIES.items():
        if name not in ours:
            app.command(name, help=summary)(lambda: None)
    return app


def _plug_in(app: typer.Typer, entry_point: "EntryPoint") -> None:
    try:
        register = entry_point.load()
    except ImportError as error:
        from dearkd.extras import import_error

        missing = import_error(error, f"`dearkd {entry_point.name}`", EXTRAS.get(entry_point.name, ()))

        def refuse(arguments: list[str] | None = typer.Argument(None, hidden=True)) -> None:
            raise missing

        settings = {"ignore_unknown_options": True}
        app.command(entry_point.name, help="(not installed here)", context_settings=settings)(refuse)
    else:
        register(app)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit; every error is one line, or with `--json` one object."""
    prepare_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    try:
        code = _run(given, as_json=as_json)
        unsent = flush_streams()
    except BrokenPipeError:  # such as `dearkd jobs | head -1`: whoever read has enough
        discard_stdout()
        sys.exit(FAILED)
    if unsent is not None and not isinstance(unsent, BrokenPipeError):
        print_error(DearKDError(f"standard output: {_system_text(unsent)}", code="system_error"), as_json=False)
    sys.exit(FAILED if unsent is not None and code == OK else code)


def _run(given: list[str], *, as_json: bool) -> int:
    words = [word for word in given or _words_to_complete() if not word.startswith("-")]
    command = words[0] if words else None
    name = " ".join(words[:2]) if command == "worker" else command or ""
    extras = EXTRAS.get(name, ())
    what = f"`dearkd {name}`"
    try:
        if extras and "--help" not in given:
            from dearkd.extras import require_extras

            require_extras(extras, what)
        code = get_command(application(command))(args=given or ["--help"], prog_name="dearkd", standalone_mode=False)
        return code if isinstance(code, int) else OK
    except SystemExit as ended:  # from within click, which has met the end of a pipe
        return ended.code if isinstance(ended.code, int) else FAILED
    except UsageError as error:
        print_error(InvalidInput(_usage_text(error), code="usage"), as_json=as_json)
        return USAGE
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:
        wrong = _settings_text(error)
        if wrong is not None:
            print_error(InvalidInput(wrong, code="settings"), as_json=as_json)
            return USAGE
        print_error(_explained(error, what, extras), as_json=as_json)
        return FAILED


def _words_to_complete() -> list[str]:
    """Words of the line that a shell asks to have completed; none where it does not."""
    if "_DEARKD_COMPLETE" not in os.environ:
        return []
    line = os.environ.get("_TYPER_COMPLETE_ARGS") or os.environ.get("COMP_WORDS") or ""
    return line.split()[1:]


def _explained(error: Exception, what: str, extras: Sequence[str]) -> DearKDError:
    """Turn any exception into a `DearKDError`: one raised on purpose, one of the environment, or a bug of dearkd."""
    if isinstance(error, DearKDError):
        return error
    if isinstance(error, ImportError) and not (error.name or "dearkd").startswith("dearkd"):
        from dearkd.extras import import_error

        return import_error(error, what, extras)
    if isinstance(error, OSError):
        return DearKDError(_system_text(error), code="system_error")
    if isinstance(error, UnicodeEncodeError):
        wrong = error.object[max(0, error.start - 20) : error.end + 20]
        return InvalidInput(
            f"{wrong!a} is no text in {error.encoding}: rename it, or set PYTHONUTF8=1", code="not_utf8"
        )
    where = traceback.extract_tb(error.__traceback__)[-1]
    what = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
    return DearKDError(f"a fault in dearkd itself, please report it: {what}", code="internal_error")


def _system_text(error: OSError) -> str:
    if error.strerror is None:
        return str(error)
    files = " and ".join(str(file) for file in (error.filename, error.filename2) if file is not None)
    return f"{files}: {error.strerror}" if files else error.strerror


def _usage_text(error: Exception) -> str:
    text = str(getattr(error, "format_message", lambda: error)()).strip()
    context = getattr(error, "ctx", None)
    return f"{text.rstrip('.')}; see `{context.command_path} --help`" if context is not None else text


def _settings_text(error: Exception) -> str | None:
    """List invalid settings: the only thing that commands validate without saying themselves what is wrong."""
    from pydantic import ValidationError

    from dearkd.settings import broken_settings

    if not isinstance(error, ValidationError):
        return None
    return "; ".join(broken_settings(error)) or str(error)
