"""`dearkd api`: the server as a command, for compose and clusters."""

from typing import Annotated

import typer

from dearkd.folders import keep_files_private
from dearkd.settings import Settings


def register(app: typer.Typer) -> None:
    app.command("api")(api)


def api(
    host: Annotated[str | None, typer.Option(help="Address to bind to. Default: DEARKD_HOST, or 127.0.0.1.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0 takes a free one. Default: DEARKD_PORT, or 8000.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print errors as JSON.")] = False,
) -> None:
    """Serve the control API and the dashboard; ends on SIGTERM."""
    from dearkd_api.serving import serve

    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    keep_files_private()
    serve(Settings().model_copy(update=given))
