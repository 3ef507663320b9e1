"""The command line, `dearkd …`. Exits 0 (ok), 1 (failed: also a job that did not succeed) or 2 (wrong usage).

Commands of the services come from the entry point group `dearkd.commands`: an entry has its command's name and names a
function `register(app)`. It is loaded when that command is asked for; in the list of all it is only named.
"""

import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import NoReturn

import typer
from pydantic import ValidationError
from typer.main import get_command

import dearkd
from dearkd.cli import datasets, jobs, models, processes, submit, teachers
from dearkd.cli.output import print_error
from dearkd.errors import DearKDError, InvalidInput
from dearkd.settings import broken_settings

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

# The one public name among typer's usage errors, which come from click or, in newer ones, from its own copy of it.
UsageError: type[Exception] = typer.BadParameter.__mro__[2]


def _version(asked: bool) -> None:
    if asked:
        print(dearkd.__version__)
        raise typer.Exit


def application(command: str | None = None) -> typer.Typer:
    """The command of that name among others, or all that there are."""
    app = typer.Typer(
        name="dearkd",
        help="Train a vision transformer from a CNN alone.",
        add_completion=False,
        pretty_exceptions_enable=False,
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
    ours = {info.name for info in app.registered_commands} | {group.name for group in app.registered_groups}
    if command not in ours:
        for entry_point in sorted(entry_points(group="dearkd.commands"), key=lambda entry: entry.name):
            if entry_point.name == command:
                _plug_in(app, entry_point)
            else:
                # Listed without being loaded: a service may import torch, and `dearkd --help` should not.
                app.command(entry_point.name, help=f"(see `dearkd {entry_point.name} --help`)")(lambda: None)
    return app


def _plug_in(app: typer.Typer, entry_point: EntryPoint) -> None:
    try:
        register = entry_point.load()
    except ImportError as error:
        missing = str(error)

        def refuse(arguments: list[str] | None = typer.Argument(None, hidden=True)) -> None:
            raise DearKDError(
                f"`dearkd {entry_point.name}` needs a package that is not installed here ({missing}): "
                "pip install 'dearkd[all]'",
                code="not_installed",
            )

        settings = {"ignore_unknown_options": True}
        app.command(entry_point.name, help="(not installed here)", context_settings=settings)(refuse)
    else:
        register(app)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit; every error is one line, or with `--json` one object."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    command = next((word for word in given if not word.startswith("-")), None)
    try:
        code = get_command(application(command))(args=given or ["--help"], prog_name="dearkd", standalone_mode=False)
    except DearKDError as error:
        print_error(error, as_json=as_json)
        sys.exit(FAILED)
    except ValidationError as error:
        print_error(InvalidInput(_settings_text(error), code="settings"), as_json=as_json)
        sys.exit(USAGE)
    except UsageError as error:
        print_error(InvalidInput(_usage_text(error), code="usage"), as_json=as_json)
        sys.exit(USAGE)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(INTERRUPTED)
    except OSError as error:
        print_error(DearKDError(str(error), code="system_error"), as_json=as_json)
        sys.exit(FAILED)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        print_error(
            DearKDError(
                f"a fault in dearkd itself, please report it: {type(error).__name__}: {error} "
                f"({where.filename}:{where.lineno})",
                code="internal_error",
            ),
            as_json=as_json,
        )
        sys.exit(FAILED)
    sys.exit(code if isinstance(code, int) else OK)


def _usage_text(error: Exception) -> str:
    text = str(getattr(error, "format_message", lambda: error)()).strip()
    context = getattr(error, "ctx", None)
    return f"{text.rstrip('.')}; see `{context.command_path} --help`" if context is not None else text


def _settings_text(error: ValidationError) -> str:
    """Settings are the only thing that commands validate without saying what is wrong themselves."""
    return "; ".join(broken_settings(error)) or str(error)
