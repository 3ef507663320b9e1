"""HTTP to one API, on an event loop and without one, behind the same few methods.

All that is asked and understood stands once, as coroutines over a `Transport` (`calls`). That of `Client` blocks where
the other waits, so that its coroutines run from beginning to end without an event loop (`run_now`).
"""

import asyncio
import ipaddress
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from dearkd.errors import InvalidInput, Unavailable

T = TypeVar("T")

# An answer may take the 60 s of `?wait=` or of the inspector, and then some.
TIMEOUT = httpx.Timeout(connect=5, read=90, write=90, pool=5)

_URL_RULE = "{!r} is no URL of an API: it looks like http://127.0.0.1:8000 (DEARKD_URL)"
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")


class Streamed(ABC):
    """An answer whose body has not been read."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response

    @abstractmethod
    async def read(self) -> None:
        """Read all of it into the response."""

    @abstractmethod
    def chunks(self) -> AsyncIterator[bytes]: ...

    @abstractmethod
    def lines(self) -> AsyncIterator[str]: ...


class Transport(ABC):
    """A connection to one API.

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
        with _opening_errors():
            # A proxy set for the outside world would not find this machine's own loopback.
            self._open(base_url=self.url, headers=headers, timeout=TIMEOUT, trust_env=not _is_loopback(host))

    @abstractmethod
    def _open(self, **arguments: Any) -> None: ...

    @abstractmethod
    async def send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """An answer, whatever its status; `arguments` are httpx's. Raises `Unavailable` where none comes."""

    @abstractmethod
    def stream(self, method: str, path: str, **arguments: Any) -> AbstractAsyncContextManager[Streamed]:
        """An answer whose body is read in the block. Raises `Unavailable` where it does not come, or breaks off."""

    @abstractmethod
    async def sleep(self, seconds: float) -> None: ...

    @abstractmethod
    async def apart(self, work: Callable[[], T]) -> T:
        """The outcome of work that takes longer than an event loop may stand still."""

    @abstractmethod
    async def close(self) -> None: ...

    @contextmanager
    def _errors(self) -> Iterator[None]:
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


class LoopTransport(Transport):
    """HTTP on asyncio's event loop."""

    def _open(self, **arguments: Any) -> None:
        self._http = httpx.AsyncClient(**arguments)

    async def send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        with self._errors():
            return await self._http.request(method, path, **arguments)

    @asynccontextmanager
    async def stream(self, method: str, path: str, **arguments: Any) -> AsyncIterator[Streamed]:
        with self._errors():
            async with self._http.stream(method, path, **arguments) as response:
                yield _LoopStream(response)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def apart(self, work: Callable[[], T]) -> T:
        return await asyncio.to_thread(work)

    async def close(self) -> None:
        await self._http.aclose()


class _LoopStream(Streamed):
    async def read(self) -> None:
        await self.response.aread()

    def chunks(self) -> AsyncIterator[bytes]:
        return self.response.aiter_bytes()

    def lines(self) -> AsyncIterator[str]:
        return self.response.aiter_lines()


class BlockingTransport(Transport):
    """HTTP that blocks: no coroutine of it ever suspends. It may be shared between threads."""

    def _open(self, **arguments: Any) -> None:
        self._http = httpx.Client(**arguments)

    async def send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        with self._errors():
            return self._http.request(method, path, **arguments)

    @asynccontextmanager
    async def stream(self, method: str, path: str, **arguments: Any) -> AsyncIterator[Streamed]:
        with self._errors(), self._http.stream(method, path, **arguments) as response:
            yield _BlockingStream(response)

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def apart(self, work: Callable[[], T]) -> T:
        return work()

    async def close(self) -> None:
        self._http.close()


class _BlockingStream(Streamed):
    async def read(self) -> None:
        self.response.read()

    async def chunks(self) -> AsyncIterator[bytes]:
        for chunk in self.response.iter_bytes():
            yield chunk

    async def lines(self) -> AsyncIterator[str]:
        for line in self.response.iter_lines():
            yield line


def run_now(coroutine: Coroutine[Any, Any, T]) -> T:
    """The outcome of a coroutine over a `BlockingTransport`."""
    try:
        coroutine.send(None)
    except StopIteration as ended:
        outcome: T = ended.value
        return outcome
    coroutine.close()
    raise RuntimeError(f"{coroutine!r} waits for an event loop, and there is none")


@contextmanager
def _opening_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InvalidInput(
            f"{_set(CERTIFICATES)} cannot be read ({error.strerror or error}): mend or unset it"
        ) from error
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        remedy = "; for a SOCKS proxy: pip install 'httpx[socks]'" if isinstance(error, ImportError) else ""
        raise InvalidInput(f"{_set(PROXIES)} cannot be used ({error}): mend or unset it{remedy}") from error


def _host_of(url: str) -> str:
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and parts.port != 0 and not parts.query and not parts.fragment
        host = httpx.URL(url).host if fits and not re.search(r"[\s\x00-\x20\x7f]", url) else ""
        host.encode("idna")  # as the socket will: an empty part, or one of over 63 letters, is no name
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
