"""HTTP to one API: how requests are sent, and tried again, and what is raised for what comes back."""

import ipaddress
import json
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx

from dearkd.errors import (
    Conflict,
    DearKDError,
    FieldError,
    Forbidden,
    InvalidInput,
    LimitReached,
    NotFound,
    TooLarge,
    TooSlow,
    Unavailable,
)
from dearkd.identifiers import new_id

Json = dict[str, Any]

RETRY_PAUSES = (0.1, 0.3, 0.9)
"""Seconds between the tries of a request that met a broken connection or a 503, or a 429 where it creates something."""
LONGEST_PAUSE = 5.0
"""The most seconds that an answer's `Retry-After` is waited for."""
STREAM_SILENCE_SECONDS = 45.0
"""A stream of events that brings nothing for so long, not even one of its beats, is broken."""
FINAL = frozenset({"inspector_unavailable", "timeout"})
"""Codes of errors that the next seconds do not change."""
# An answer may take the 60 s of `?wait=` or of the inspector, and then some.
TIMEOUT = httpx.Timeout(connect=5, read=90, write=90, pool=5)

_URL_RULE = "{!r} is no URL of an API: it looks like http://127.0.0.1:8000 (DEARKD_URL)"
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")

_ERRORS: dict[int, type[DearKDError]] = {
    400: InvalidInput,
    403: Forbidden,
    404: NotFound,
    408: TooSlow,
    409: Conflict,
    413: TooLarge,
    422: InvalidInput,
    429: LimitReached,
    503: Unavailable,
}


class Transport:
    """A connection to one API; a context manager, and safe to share between threads.

    Args:
        url: of the API, such as `http://127.0.0.1:8000`.
        api_key: sent as a bearer token.

    Raises:
        InvalidInput: if `url` is no HTTP URL, no header can bear the key, or the environment sets a proxy or
            certificates that cannot be used.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        host = _host_of(url)
        self.url = url.rstrip("/")
        if api_key and not re.fullmatch(r"[\x21-\x7e]+", api_key):
            raise InvalidInput(
                "the API key has blanks or characters outside ASCII, which no header bears: check DEARKD_API_KEY"
            )
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # A proxy set for the outside world would not find this machine's own loopback.
        outside = not _is_loopback(host)
        try:
            self._http = httpx.Client(base_url=self.url, headers=headers, timeout=TIMEOUT, trust_env=outside)
        except OSError as error:
            raise InvalidInput(
                f"{_set(CERTIFICATES)} cannot be read ({error.strerror or error}): mend or unset it"
            ) from error
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            remedy = "; for a SOCKS proxy: pip install 'httpx[socks]'" if isinstance(error, ImportError) else ""
            raise InvalidInput(f"{_set(PROXIES)} cannot be used ({error}): mend or unset it{remedy}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def create(self, path: str, **arguments: Any) -> Json:
        """POST what creates something, with an `Idempotency-Key`: so it may be sent again, and creates it once.

        Raises:
            Unavailable, LimitReached: if that does not end within a few tries.
        """
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        return self.json("POST", path, retried=True, headers=headers, **arguments)

    def json(self, method: str, path: str, *, retried: bool = False, **arguments: Any) -> Json:
        """The JSON object of an answer.

        Args:
            method, path: of the request.
            retried: True if it may be sent again; a GET always may.
            arguments: httpx's.
        """
        pauses = iter(RETRY_PAUSES if retried or method == "GET" else ())
        while True:
            asked = 0.0
            try:
                for _, file, *_ in arguments.get("files", {}).values():
                    if hasattr(file, "seek"):
                        file.seek(0)
                response = self.send(method, path, **arguments)
                asked = _asked_pause(response) if retried else 0.0
                raise_for_status(response)
                break
            except (Unavailable, LimitReached) as error:
                pause = next(pauses, None)
                if pause is None or error.code in FINAL or (isinstance(error, LimitReached) and not retried):
                    raise
                time.sleep(max(pause, asked))
        try:
            value = response.json()
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise _no_api(self.url, f"{method} {path} answered {response.status_code} without a JSON object")
        return value

    def send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """An answer, whatever its status. Raises `Unavailable` where none comes."""
        with self._transport_errors():
            return self._http.request(method, path, **arguments)

    def download(self, url: str, path: Path) -> None:
        """Fetch what lies at a URL to a local file, whole or not at all."""
        part = path.with_name(f"{path.name}.{new_id('tmp')}")
        try:
            # On S3 the API answers with a redirect to the store itself.
            with self._transport_errors(), self._http.stream("GET", url, follow_redirects=True) as response:
                if response.is_error:
                    response.read()
                raise_for_status(response)
                with part.open("wb") as file:
                    for chunk in response.iter_bytes():
                        file.write(chunk)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def stream(self, path: str, *, after: str | None = None) -> Iterator[Json | None]:
        """Server-sent events of one connection: their data, and None for a beat.

        Args:
            path: of the events.
            after: the id of the last one received.
        """
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after is not None else {})
        timeout = httpx.Timeout(connect=5, read=STREAM_SILENCE_SECONDS, write=5, pool=5)
        with self._transport_errors(), self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
            if response.is_error:
                response.read()
            raise_for_status(response)
            data: list[str] = []
            for line in response.iter_lines():
                if line.startswith("data:"):
                    data.append(line.removeprefix("data:").removeprefix(" "))
                elif line.startswith(":"):
                    yield None
                elif not line and data:
                    event: Json = json.loads("\n".join(data))
                    data = []
                    yield event

    @contextmanager
    def _transport_errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException as error:
            raise Unavailable(
                f"{self.url} did not answer in time ({type(error).__name__}): it is overloaded or hangs; try again",
                code="timeout",
            ) from error
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise Unavailable(
                f"cannot reach {self.url} ({error}): start it with `dearkd up`, or set DEARKD_URL to where it runs",
                code="unreachable",
            ) from error


def _host_of(url: str) -> str:
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and parts.port != 0 and not parts.query and not parts.fragment
        host = httpx.URL(url).host if fits and not re.search(r"[\s\x00-\x20\x7f]", url) else ""
    except (ValueError, httpx.InvalidURL) as error:
        raise InvalidInput(f"{_URL_RULE.format(url)}: {error}") from None
    if not host:
        raise InvalidInput(_URL_RULE.format(url))
    return host


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _set(variables: tuple[str, ...]) -> str:
    """The environment variables among `variables` that are set, in upper or lower case."""
    names = sorted(name for name in os.environ if name.upper() in variables and os.environ[name])
    return ", ".join(names) or "the system's setting of proxies or certificates"


def segment(text: str) -> str:
    """Text as one segment of a path. Dots alone would be taken for a step, and httpx resolves them."""
    if text.strip(".") == "":
        raise InvalidInput(f"{text!r} is neither an id nor a file name")
    return quote(text, safe="")


def raise_for_status(response: httpx.Response) -> None:
    if not response.is_error:
        return
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        raise _no_api(str(response.request.url), f"HTTP {response.status_code}: {response.text.strip()[:200]!r}")
    message = str(problem.get("detail") or problem.get("title") or f"HTTP {response.status_code}")
    if response.status_code == 401:
        message += "; set DEARKD_API_KEY to a key of this server"
    kind = _ERRORS.get(response.status_code, DearKDError)
    code = problem.get("code")
    raise kind(message, code=str(code) if code else f"http_{response.status_code}", errors=fields_of(problem))


def fields_of(problem: Json) -> list[FieldError]:
    return [
        FieldError(str(error.get("pointer", "")), str(error.get("detail", "")))
        for error in problem.get("errors") or ()
        if isinstance(error, dict)
    ]


def _asked_pause(response: httpx.Response) -> float:
    """The seconds of a `Retry-After`, up to `LONGEST_PAUSE`; 0 without one."""
    said = response.headers.get("retry-after", "")
    return min(float(said), LONGEST_PAUSE) if said.isdecimal() else 0.0


def _no_api(url: str, what: str) -> DearKDError:
    return DearKDError(f"{url} does not speak dearkd's API ({what}): check DEARKD_URL", code="not_the_api")
