"""The HTTP client of the control API, thin over httpx: a method for each call, and errors of dearkd's own tree.

Answers are the API's JSON as it is (docs: the API's schema). A reference that does not exist, a spec that breaks a rule
and so on raise what the API meant by them: `NotFound`, `InvalidInput` with its pointers, `Conflict`, `TooLarge`,
`Unavailable`; `Unavailable` with code `unreachable` where no API answers at all.
"""

import ipaddress
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote, urlsplit

import httpx

from dearkd.choices import ClassOrder, Kind
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
from dearkd.jobs.model import TERMINAL

Json = dict[str, Any]
Collection = Literal["teachers", "datasets", "models", "synthesis-jobs", "training-runs"]

JOBS: dict[Kind, Collection] = {"synthesis": "synthesis-jobs", "training": "training-runs"}
PAGE = 50
RETRY_PAUSES = (0.1, 0.3, 0.9)
"""Seconds between the tries of a GET that met a broken connection or a 503."""
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


class Client:
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

    # Teachers

    def create_teacher(self, spec: Mapping[str, Any], weights: Path) -> Json:
        """Upload a teacher: its spec, and a safetensors file, which is streamed. Returns once it is registered."""
        with weights.open("rb") as file:
            files = {
                "teacher": (None, json.dumps(dict(spec)), "application/json"),
                # A file's name may hold bytes that are no text.
                "weights": (weights.name.encode("utf-8", "replace").decode(), file, "application/octet-stream"),
            }
            answer = self._json("POST", "/v1/teachers", files=files)
        return self._registered(answer, self.get_teacher)

    def register_teacher(self, spec: Mapping[str, Any], prefix: str) -> Json:
        """Register a teacher whose weights lie in the API's storage already, under `prefix`. They stay there."""
        answer = self._json("POST", "/v1/teachers", json={**spec, "prefix": prefix})
        return self._registered(answer, self.get_teacher)

    def get_teacher(self, identifier: str) -> Json:
        return self._get("teachers", identifier)

    def check_teacher(self, identifier: str, dataset: str, *, images: int | None = None) -> Json:
        """Try a teacher on a registered dataset of real images. Returns once the check has ended.

        Args:
            identifier: of the teacher.
            dataset: its id.
            images: at most so many; by default the API's own bound.

        Raises:
            InvalidInput: if it has failed, saying why.
        """
        path = f"/v1/teachers/{_segment(identifier)}/checks"
        check = self._json("POST", path, json={"dataset": dataset} | ({"images": images} if images else {}))
        while check["status"] in ("queued", "running"):
            time.sleep(1)
            check = self._json("GET", f"{path}/{_segment(str(check['id']))}")
        return _without_failure(check)

    def list_teachers(self) -> Iterator[Json]:
        return self.iter_pages("/v1/teachers")

    def delete_teacher(self, identifier: str) -> None:
        self._delete("teachers", identifier)

    # Datasets

    def create_dataset(self, prefix: str, name: str, *, class_order: ClassOrder | None = None) -> Json:
        """Register a WebDataset that lies under `prefix` in the API's storage. Returns once every shard is checked."""
        body = {"prefix": prefix, "name": name} | ({"class_order": class_order} if class_order else {})
        return self._registered(self._json("POST", "/v1/datasets", json=body), self.get_dataset)

    def get_dataset(self, identifier: str) -> Json:
        return self._get("datasets", identifier)

    def list_datasets(self) -> Iterator[Json]:
        return self.iter_pages("/v1/datasets")

    def delete_dataset(self, identifier: str) -> None:
        self._delete("datasets", identifier)

    def download_dataset_file(self, identifier: str, name: str, path: Path) -> None:
        """Fetch a shard, `_info.json`, `preview.png` or `README.md` to a local file, whole or not at all."""
        self._download(f"/v1/datasets/{_segment(identifier)}/files/{_segment(name)}", path)

    # Models

    def get_model(self, identifier: str) -> Json:
        return self._get("models", identifier)

    def list_models(self) -> Iterator[Json]:
        return self.iter_pages("/v1/models")

    def delete_model(self, identifier: str) -> None:
        self._delete("models", identifier)

    def download_model_file(self, identifier: str, name: str, path: Path) -> None:
        """Fetch a file of a model to a local file, whole or not at all."""
        self._download(f"/v1/models/{_segment(identifier)}/files/{_segment(name)}", path)

    def predict(self, identifier: str, image: bytes) -> Json:
        """Classify an image (the bytes of its file): `student`, and `teacher`, null where that is gone."""
        kind = {"Content-Type": "application/octet-stream"}
        return self._json("POST", f"/v1/models/{_segment(identifier)}/predict", content=image, headers=kind)

    # Jobs

    def create_synthesis_job(self, spec: Mapping[str, Any]) -> Json:
        return self._json("POST", "/v1/synthesis-jobs", json=dict(spec))

    def plan_synthesis_job(self, spec: Mapping[str, Any]) -> Json:
        """A dry run: the filled-in spec, teacher passes, images, shards and estimated bytes; creates nothing."""
        return self._json("POST", "/v1/synthesis-jobs", params={"dry_run": "true"}, json=dict(spec))

    def create_training_run(self, spec: Mapping[str, Any]) -> Json:
        return self._json("POST", "/v1/training-runs", json=dict(spec))

    def plan_training_run(self, spec: Mapping[str, Any]) -> Json:
        """A dry run: the filled-in spec, images, epochs and steps; creates nothing."""
        return self._json("POST", "/v1/training-runs", params={"dry_run": "true"}, json=dict(spec))

    def get_job(self, identifier: str, *, wait: float = 0) -> Json:
        """A job. With `wait` (seconds, up to 60) the answer comes on a change of status, or when they are over."""
        return self._json("GET", job_path(identifier), params={"wait": f"{wait:g}"} if wait else None)

    def list_jobs(self, kind: Kind, *, status: str | None = None) -> Iterator[Json]:
        """Jobs of one kind, newest first."""
        return self.iter_pages(f"/v1/{JOBS[kind]}", status=status)

    def cancel_job(self, identifier: str) -> Json:
        return self._json("POST", f"{job_path(identifier)}/cancel")

    def retry_job(self, identifier: str, *, from_beginning: bool = False) -> Json:
        """Let a failed or canceled job go on, or start over: then what it made so far is deleted."""
        body = {"json": {"from": "beginning"}} if from_beginning else {}
        return self._json("POST", f"{job_path(identifier)}/retry", **body)

    def wait_for_job(
        self,
        identifier: str,
        *,
        interval: float = 1.0,
        on_update: Callable[[Json], None] | None = None,
        patience: float = 60.0,
    ) -> Json:
        """Poll a job until it has ended, and return it.

        Args:
            interval: the longest time between two updates, in seconds; a change of status comes at once.
            on_update: called with every answer.
            patience: once the API has answered, how long it may be out of reach, in seconds.
        """
        job = self.get_job(identifier)
        seen = time.monotonic()
        while True:
            if on_update is not None:
                on_update(job)
            if job["status"] in TERMINAL:
                return job
            while True:
                try:
                    job = self.get_job(identifier, wait=interval)
                except Unavailable:
                    if time.monotonic() - seen > patience:
                        raise
                    time.sleep(interval)
                else:
                    seen = time.monotonic()
                    break

    def list_events(self, identifier: str) -> Iterator[Json]:
        return self.iter_pages(f"{job_path(identifier)}/events")

    def get_log(self, identifier: str) -> str:
        """A job's log: notes of its attempts and why they ended, a line each."""
        response = self._send("GET", f"{job_path(identifier)}/log")
        _raise_for_status(response)
        return response.text

    def list_metrics(self, identifier: str) -> Iterator[Json]:
        """The rows of a training run, one an epoch."""
        return self.iter_pages(f"{job_path(identifier)}/metrics")

    def download_preview(self, identifier: str, path: Path) -> None:
        """Fetch the grid of a synthesis job's images so far."""
        self._download(f"{job_path(identifier)}/preview.png", path)

    # The service itself

    def is_ready(self) -> bool:
        """Tell whether the API can reach Redis and storage.

        Raises:
            Unavailable: if no API answers.
        """
        return self._send("GET", "/readyz").status_code == 200

    def iter_pages(self, path: str, **params: str | None) -> Iterator[Json]:
        """The items of a collection, a page at a time, for as long as the caller asks for more."""
        query = {key: value for key, value in params.items() if value is not None} | {"limit": str(PAGE)}
        while True:
            page = self._json("GET", path, params=query)
            yield from page["data"]
            if not page["has_more"]:
                return
            query["after"] = str(page["data"][-1]["id"])

    def _registered(self, item: Json, get: Callable[[str], Json]) -> Json:
        """The item once the inspector is done with it: what takes it longer than a minute is answered before."""
        while item.get("status") == "registering":
            time.sleep(1)
            item = get(str(item["id"]))
        return _without_failure(item)

    def _get(self, collection: Collection, identifier: str) -> Json:
        return self._json("GET", f"/v1/{collection}/{_segment(identifier)}")

    def _delete(self, collection: Collection, identifier: str) -> None:
        _raise_for_status(self._send("DELETE", f"/v1/{collection}/{_segment(identifier)}"))

    def _json(self, method: str, path: str, **arguments: Any) -> Json:
        for pause in (*RETRY_PAUSES, None) if method == "GET" else (None,):
            try:
                response = self._send(method, path, **arguments)
                _raise_for_status(response)
                break
            except Unavailable as error:
                if pause is None or error.code == "timeout":
                    raise
                time.sleep(pause)
        try:
            value = response.json()
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise _no_api(self.url, f"{method} {path} answered {response.status_code} without a JSON object")
        return value

    def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        with self._transport_errors():
            return self._http.request(method, path, **arguments)

    def _download(self, url: str, path: Path) -> None:
        part = path.with_name(f"{path.name}.{new_id('tmp')}")
        try:
            # On S3 the API answers with a redirect to the store itself.
            with self._transport_errors(), self._http.stream("GET", url, follow_redirects=True) as response:
                if response.is_error:
                    response.read()
                _raise_for_status(response)
                with part.open("wb") as file:
                    for chunk in response.iter_bytes():
                        file.write(chunk)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

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


def job_path(identifier: str) -> str:
    """The path of a job in the API.

    Raises:
        InvalidInput: if the identifier is of neither kind of job.
    """
    prefix = identifier.partition("-")[0]
    kinds: dict[str, Kind] = {"syn": "synthesis", "run": "training"}
    if prefix not in kinds:
        raise InvalidInput(f"{identifier!r} is no job: synthesis jobs start with syn-, training runs with run-")
    return f"/v1/{JOBS[kinds[prefix]]}/{_segment(identifier)}"


def _segment(text: str) -> str:
    """Text as one segment of a path. Dots alone would be taken for a step, and httpx resolves them."""
    if text.strip(".") == "":
        raise InvalidInput(f"{text!r} is neither an id nor a file name")
    return quote(text, safe="")


def _raise_for_status(response: httpx.Response) -> None:
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
    raise kind(message, code=str(code) if code else f"http_{response.status_code}", errors=_fields(problem))


def _without_failure(item: Json) -> Json:
    """The item. Raises `InvalidInput` with what the inspector found wrong, if it has failed."""
    if item.get("status") == "failed":
        error = item["error"]
        raise InvalidInput(str(error["message"]), code=str(error["code"]), errors=_fields(error))
    return item


def _fields(problem: Json) -> list[FieldError]:
    return [
        FieldError(str(error.get("pointer", "")), str(error.get("detail", "")))
        for error in problem.get("errors") or ()
        if isinstance(error, dict)
    ]


def _no_api(url: str, what: str) -> DearKDError:
    return DearKDError(f"{url} does not speak dearkd's API ({what}): check DEARKD_URL", code="not_the_api")
