"""The object stores behind a storage root, through obstore: how they are opened, and what they raise told as ours."""

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, cast

from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    NotFoundError,
    NotSupportedError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, GCSStore, LocalStore, S3Store

from dearkd.addresses import StorageAddress, check_endpoint
from dearkd.errors import Conflict, CorruptData, DiskFull, InvalidInput, NotFound, Unavailable
from dearkd.redaction import without_credentials
from dearkd.secret_files import secret_of_environment
from dearkd.settings import Settings

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config

log = logging.getLogger(__name__)

BucketStore = S3Store | GCSStore | AzureStore
ObjectStore = LocalStore | BucketStore

REQUEST_SECONDS = 30.0
"""The limit of a request to a bucket and its answer, on top of the time that its bytes need."""

# Long enough for a hiccup; an outage is the caller's to wait out, and a request's to report.
_RETRIES: "RetryConfig" = {"max_retries": 4, "retry_timeout": timedelta(seconds=20)}

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
CREDENTIALS = {
    "access_key_id": "AWS_ACCESS_KEY_ID",
    "secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "session_token": "AWS_SESSION_TOKEN",
}
"""obstore's options, and the variables that it reads itself; `…_FILE` of each names a file that holds it."""


class AlreadyExists(Conflict):
    default_code = "already_exists"


@dataclass(frozen=True, slots=True)
class StoredObject:
    key: str
    size: int
    modified: datetime
    """The time at which it was written, with its zone."""


def open_bucket(address: StorageAddress, settings: Settings, **limits: timedelta) -> BucketStore:
    """The store of a bucket; `limits` are time limits, as obstore's client options. Nothing is sent yet.

    Credentials are those of the environment (`AWS_…`, `GOOGLE_…`, `AZURE_…`) or of the machine's role, as obstore
    finds them; those of S3 may be in files (`AWS_SECRET_ACCESS_KEY_FILE` and so on).

    Raises:
        InvalidInput: if something that the store needs is not set, an endpoint is no address, or a file of a secret
            holds none.
        Unavailable: if the store cannot be opened for another reason.
    """
    client: ClientConfig = {"connect_timeout": timedelta(seconds=5), "timeout": timedelta(seconds=REQUEST_SECONDS)}
    client.update(cast("ClientConfig", limits))
    try:
        match address.scheme:
            case "gs":
                return GCSStore(address.bucket, prefix=address.prefix, client_options=client, retry_config=_RETRIES)
            case "az":
                return AzureStore(address.bucket, prefix=address.prefix, client_options=client, retry_config=_RETRIES)
            case _:
                return _s3(address, settings, client)
    except BaseError as error:
        cause = _words(error)
        raise InvalidInput(
            f"the store of {address.scheme}://{address.bucket} cannot be opened: {cause}; see the settings of its "
            "provider in the environment",
        ) from error


def _s3(address: StorageAddress, settings: Settings, client: "ClientConfig") -> S3Store:
    endpoint = settings.s3_endpoint
    if endpoint is None and (named := _from_environment(ENDPOINTS)):
        try:
            endpoint = check_endpoint(named)
        except ValueError as error:
            raise InvalidInput(f"{' or '.join(ENDPOINTS)} is {without_credentials(repr(named))}: {error}") from None
    region = settings.s3_region or _from_environment(REGIONS) or "us-east-1"
    # What is given goes before the environment.
    given = {option: _from_file(name) for option, name in CREDENTIALS.items()}
    keys = cast("S3Config", {option: secret for option, secret in given.items() if secret is not None})
    make = partial(S3Store, address.bucket, config=keys, prefix=address.prefix, region=region, retry_config=_RETRIES)
    virtual = settings.s3_addressing == "virtual"
    if endpoint is None:
        # AWS wants the bucket in the host's name; but its certificates do not cover one with dots.
        virtual = virtual or (settings.s3_addressing is None and "." not in address.bucket)
        return make(virtual_hosted_style_request=virtual, client_options=client)
    client["allow_http"] = endpoint.startswith("http://")
    if virtual:  # obstore takes the endpoint to name the bucket then
        scheme, _, host = endpoint.partition("://")
        endpoint = f"{scheme}://{address.bucket}.{host}"
    return make(endpoint=endpoint, virtual_hosted_style_request=virtual, client_options=client)


def _from_file(name: str) -> str | None:
    try:
        return secret_of_environment(name)
    except ValueError as error:
        raise InvalidInput(str(error)) from None


def _from_environment(names: tuple[str, ...]) -> str | None:
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


@contextmanager
def errors_told(key: str) -> Iterator[None]:
    """Turn what obstore and the file system raise about a key into ours.

    The messages are made for clients: what the store itself says, with its paths and addresses, is their `cause`.
    """
    try:
        yield
    except AlreadyExistsError:
        raise AlreadyExists(f"{key} exists already in storage") from None
    except (NotFoundError, FileNotFoundError):
        raise NotFound(f"{key} is not in storage") from None
    except (PermissionDeniedError, UnauthenticatedError) as error:
        if "ermission denied (os error" in str(error):
            raise _unavailable(f"storage is read-only for dearkd ({key}): {_WRITABLE}", error) from error
        raise _unavailable(
            f"storage refused its credentials for {key}: check the keys and DEARKD_STORAGE_URL", error
        ) from error
    except (BaseError, NotSupportedError, OSError) as error:
        if isinstance(error, InvalidPathError) or "File system loop found" in str(error):
            raise CorruptData(
                f"under {key!r} in storage lies what has no key, a name that is not UTF-8 or a link to a folder above: "
                "rename or remove it"
            ) from None
        if is_disk_full(error):
            cause = _words(error)
            log.info("no room for %s: %s", key, cause)
            raise DiskFull(f"storage is full, it has no room for {key}: make room and retry", cause=cause) from error
        if _is_read_only(error):
            raise _unavailable(f"storage is read-only ({key}): {_WRITABLE}", error) from error
        raise _unavailable(
            f"storage failed on {key}: check DEARKD_STORAGE_URL and the store itself; dearkd's log says more", error
        ) from error
    except BaseException as error:
        # PyO3's PanicException, which no module exports, is no Exception: nobody would tell it as an outage.
        if type(error).__name__ != "PanicException":
            raise
        raise _unavailable(f"storage failed on {key}: obstore broke down; dearkd's log says more", error) from error


_WRITABLE = "mount it so that it can be written, or mend the permissions of its folder"


def _unavailable(message: str, error: BaseException) -> Unavailable:
    cause = _words(error)
    log.info("%s: %s", message, cause)
    return Unavailable(message, code="storage_unavailable", cause=cause)


def _words(error: BaseException) -> str:
    """The text of an error, in one line and without its internals in Rust."""
    return without_credentials(" ".join(str(error).partition("Debug source:")[0].split()))


def is_disk_full(error: BaseException) -> bool:
    """Tell whether an error of the operating system, or of the store, says that no room is left."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "No space left on device" in str(error) or "Disk quota exceeded" in str(error)


def _is_read_only(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
    return any(f"(os error {number})" in str(error) for number in (errno.EROFS, errno.EACCES, errno.EPERM))
