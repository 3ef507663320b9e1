"""Addresses among the settings: of storage, of an S3 server, of Redis and of the API; each is checked when it is read.

What obstore, httpx and redis-py make of an address that is slightly wrong is another address, or a panic.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from redis.connection import parse_url

FORMS = "use file:///absolute/path, file://./relative/path or s3://bucket/prefix (gs:// and az:// likewise)"

Scheme = Literal["file", "s3", "gs", "az"]


@dataclass(frozen=True, slots=True)
class StorageAddress:
    """The place of a storage root: a folder, or a bucket and the prefix of its keys."""

    scheme: Scheme
    folder: Path = Path()
    bucket: str = ""
    prefix: str | None = None

    @classmethod
    def parse(cls, url: str) -> "StorageAddress":
        """The address that a URL names; a relative folder is one of the current folder.

        Raises:
            ValueError: if the URL is of another form; the message gives the rule and the remedy.
        """
        scheme, found, rest = url.partition("://")
        scheme = scheme.lower()
        if not found or scheme not in ("file", "s3", "gs", "az"):
            raise ValueError(FORMS)
        if not url.isprintable() or url != url.strip():
            raise ValueError("it holds a line break, another control character or surrounding blanks: leave them out")
        if scheme == "file":
            return cls("file", folder=_folder(rest))
        bucket, _, prefix = rest.partition("/")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}", bucket):
            if "@" in bucket:
                raise ValueError(f"it may not hold keys: use {scheme}://bucket/prefix, and the provider's variables")
            raise ValueError(
                f"{bucket!r} is no bucket's name (letters, digits, dots and hyphens): use {scheme}://bucket/prefix"
                + (", and give the server's host and port by DEARKD_S3_ENDPOINT" if ":" in bucket else "")
            )
        prefix = prefix.removesuffix("/")
        if odd := re.search(r"[^A-Za-z0-9/._=+,@!()' -]", prefix):
            raise ValueError(f"a prefix may not hold {odd[0]!r}: use letters, digits, '-', '_', '.' and '/'")
        if prefix and any(part in ("", ".", "..") for part in prefix.split("/")):
            raise ValueError("its prefix has an empty or dotted part: use names joined by single slashes")
        return cls(scheme, bucket=bucket, prefix=prefix or None)  # type: ignore[arg-type]


def _folder(text: str) -> Path:
    """The folder behind `file://`: a path as it stands, not percent-encoded."""
    if text.startswith("/"):
        if re.match(r"/[A-Za-z]:([\\/]|$)", text):
            raise ValueError("drive letters are not supported: use file:///absolute/path")
        if not text.strip("/"):
            raise ValueError("it names the root of the file system: use a folder of its own, file:///absolute/path")
        return Path(text)
    first, _, rest = text.partition("/")
    if first in (".", ".."):
        return Path(text).absolute()
    if first.startswith("~"):
        raise ValueError(f"'~' is not expanded in a URL: use file://{Path.home()}/{rest}")
    if not first:
        raise ValueError(f"it names no folder: {FORMS}")
    local = "" if first.lower() in ("localhost", "127.0.0.1") else f", or file://./{text} for a relative path"
    raise ValueError(f"{first!r} stands where a host would, and there is none: use file:///{rest or 'path'}{local}")


def check_endpoint(url: str) -> str:
    """The address of an S3 server, its scheme in lower case and without a slash at the end.

    Raises:
        ValueError: if it is no `http://host:port` or `https://host:port`.
    """
    form = "use http://host:port or https://host:port, or leave it unset for AWS"
    checked = _check_http(url, form)
    if urlsplit(checked).query or urlsplit(checked).fragment:
        raise ValueError(f"it may have no query and no fragment: {form}")
    return checked.rstrip("/")


def check_api_url(url: str) -> str:
    """Raises ValueError if the API's address is no `http://host:port` or `https://host:port`."""
    return _check_http(url, "use http://host:port or https://host:port, such as http://127.0.0.1:8000")


def _check_http(url: str, form: str) -> str:
    if not url.isprintable() or " " in url:
        raise ValueError(f"it holds a blank or a control character: {form}")
    scheme, found, rest = url.partition("://")
    scheme = scheme.lower()
    if not found or scheme not in ("http", "https"):
        raise ValueError(form)
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{error}: {form}") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"it may not hold a user or a password: {form}")
    if not parts.hostname or port == 0 or not re.fullmatch(r"[\w.:%-]+", parts.hostname):
        raise ValueError(f"it names no host, or no port that there is: {form}")
    return f"{scheme}://{rest}"


def check_redis_url(url: str) -> str:
    """Raises ValueError if redis-py would not connect by this URL, or to another database than it names."""
    form = "use redis://host:port/0, rediss://host:port/0 or unix:///path/of/a/socket"
    try:
        parts = urlsplit(url)
        wanted = parts.path.strip("/")
        parse_url(url)
        if parts.port == 0 or not url.isprintable() or " " in url:
            raise ValueError
    except ValueError:
        raise ValueError(form) from None  # without what the parser says, which may hold the password
    if parts.scheme in ("redis", "rediss") and wanted and not wanted.isdigit():
        raise ValueError(f"a database is a number, not {wanted!r}: {form}")
    return url


def check_ray_address(text: str) -> str:
    """Raises ValueError if the address of a Ray cluster's head is no `host:port`."""
    host, _, port = text.rpartition(":")
    if not re.fullmatch(r"[\w.-]+|\[[0-9A-Fa-f:.]+\]", host) or not (
        port.isascii() and port.isdigit() and 0 < int(port) < 65536
    ):
        raise ValueError("use host:port, as for `ray start --address`")
    return text


def expand_folder(path: Path) -> Path:
    """A folder with `~` replaced by the home folder, as a shell would.

    Raises:
        ValueError: if it names the home of a user whom there is not.
    """
    if not str(path).isprintable():
        raise ValueError("it holds a line break or another control character: leave it out")
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"there is no user {path.parts[0]!r}: write the whole path") from None
