"""Models of the Hugging Face Hub: fetched by the client, as a folder with a `config.json`."""

import os
from pathlib import Path

from dearkd.errors import DearKDError, InvalidInput, NotFound, Unavailable
from dearkd.teacher_files.config_folders import CONFIG, PREPROCESSOR, WEIGHTS

PREFIXES = ("hf-hub:", "hf_hub:")


def is_hub_name(source: str) -> bool:
    """Tell whether a source is a model's name, as `hf-hub:owner/name` or `hf-hub:owner/name@revision`."""
    return source.startswith(PREFIXES)


def fetch(source: str) -> Path:
    """Fetch a model's `config.json` and weights into the cache of huggingface_hub, and return their folder.

    `HF_ENDPOINT` names another hub, `HF_TOKEN` opens private models, as everywhere.

    Raises:
        InvalidInput: if the name is none, or the model has no weights that are taken.
        NotFound: if the hub has no such model or revision, or does not show it.
        Unavailable: if the hub cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    name, _, revision = source.partition(":")[2].partition("@")
    endpoint = os.environ.get("HF_ENDPOINT") or None

    def file(filename: str) -> Path | None:
        try:
            return Path(huggingface_hub.hf_hub_download(name, filename, revision=revision or None, endpoint=endpoint))
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            return None

    try:
        config = file(CONFIG)
        if config is None:
            raise InvalidInput(f"{source} has no {CONFIG}: download its weights, and give their file")
        weights = next((path for path in map(file, WEIGHTS) if path is not None), None)
        if weights is None:
            raise InvalidInput(
                f"{source} has neither {' nor '.join(WEIGHTS)}: download its weights, and give their file"
            )
        file(PREPROCESSOR)
    except DearKDError:
        raise
    except Exception as error:  # of huggingface_hub, and of the HTTP client below it
        raise _explained(error, source) from error
    return config.parent


def _explained(error: Exception, source: str) -> DearKDError:
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    words = str(error).strip().splitlines()
    first = words[0] if words else type(error).__name__
    if isinstance(error, HFValidationError):
        return InvalidInput(f"{source} is no name of a model, such as hf-hub:timm/resnet18.a1_in1k ({first:.150})")
    if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
        return NotFound(
            f"{source} is not on the Hub, or not shown without a token: check the name, or set HF_TOKEN ({first:.150})"
        )
    return Unavailable(f"{source} cannot be fetched ({first:.150}): try again, or download it and give its folder")
