"""Folders on their way to the Hugging Face Hub: only where a command says `--push`, and private unless it says more."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from dearkd.cli.output import note
from dearkd.errors import DearKDError, Forbidden, InvalidInput, Unavailable

Push = Annotated[
    str | None,
    typer.Option("--push", metavar="OWNER/NAME", help="Also upload the folder to the Hub, as a private repository."),
]
Public = Annotated[bool, typer.Option("--public", help="With --push: for everybody to see.")]


def require_pushable(repository: str | None, *, public: bool, is_hub_form: bool) -> None:
    """Check, before anything is made, what can be checked of a `--push`.

    Args:
        repository: its value; None where it was not given.
        public: of `--public`.
        is_hub_form: True if what is made is in the Hub's form (`hf`).

    Raises:
        typer.BadParameter: if the flags do not go together, or the name is none that the Hub takes.
        InvalidInput: without a token.
    """
    if repository is None:
        if public:
            raise typer.BadParameter("--public goes with --push OWNER/NAME")
        return
    if not is_hub_form:
        raise typer.BadParameter("--push is for the form that the Hub reads: hf")
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # it is in its __init__

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise typer.BadParameter(
            f"--push {repository!r:.100} is no name on the Hub, such as me/student: {error}"
        ) from None
    if huggingface_hub.get_token() is None:
        raise InvalidInput("--push needs a token of the Hub that may write: run `hf auth login`, or set HF_TOKEN")


def push_folder(folder: Path, repository: str, kind: Literal["model", "dataset"], *, public: bool) -> str:
    """Upload a folder as one commit, and return the repository's address. It is created where there is none.

    `HF_ENDPOINT` names another hub, `HF_TOKEN` is used as everywhere. The visibility of a repository that is there
    already stays as it is.

    Raises:
        Forbidden: if the token may not write there.
        Unavailable: if the hub cannot be reached, or does not take it. The folder stays.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    try:
        address = hub.create_repo(repository, repo_type=kind, private=not public, exist_ok=True)
        name = address.repo_id  # with its owner, where the name alone was given
        hub.upload_folder(repo_id=name, repo_type=kind, folder_path=folder, commit_message="Upload from dearkd")
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise Forbidden(
                f"the token may not write to {repository} on the Hub ({_first_line(error)}): {folder} is made; use "
                "another name or token, and `hf upload`"
            ) from error
        raise _not_taken(error, folder, repository) from error
    except Exception as error:  # of the HTTP client below huggingface_hub
        raise _not_taken(error, folder, repository) from error
    note(f"pushed to {address}")
    return str(address)


def _not_taken(error: Exception, folder: Path, repository: str) -> DearKDError:
    return Unavailable(
        f"{folder} is made, but the Hub has not taken it ({_first_line(error):.200}): `hf upload {repository} "
        f"{folder}` tries again"
    )


def _first_line(error: Exception) -> str:
    words = str(error).strip().splitlines()
    return words[0] if words else type(error).__name__
