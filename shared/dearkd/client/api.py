"""The HTTP client of the control API, thin over httpx: a method for each call, and errors of dearkd's own tree.

Answers are the API's JSON as it is (docs: the API's schema). A reference that does not exist, a spec that breaks a rule
and so on raise what the API meant by them: `NotFound`, `InvalidInput` with its pointers, `Conflict`, `TooLarge`,
`Unavailable`; `Unavailable` with code `unreachable` where no API answers at all.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from dearkd.choices import ClassOrder, Kind
from dearkd.client.transport import RETRY_PAUSES, Json, Transport, fields_of, raise_for_status, segment
from dearkd.errors import InvalidInput, Unavailable
from dearkd.jobs.model import TERMINAL

Collection = Literal["teachers", "datasets", "models", "synthesis-jobs", "training-runs"]

JOBS: dict[Kind, Collection] = {"synthesis": "synthesis-jobs", "training": "training-runs"}
PAGE = 50
STREAM_PATIENCE_SECONDS = 60.0


class Client(Transport):
    """The calls of the control API. See `Transport` for how it is opened."""

    # Teachers

    def create_teacher(self, spec: Mapping[str, Any], weights: Path) -> Json:
        """Upload a teacher: its spec, and a safetensors file, which is streamed. Returns once it is registered."""
        with weights.open("rb") as file:
            files = {
                "teacher": (None, json.dumps(dict(spec)), "application/json"),
                # A file's name may hold bytes that are no text.
                "weights": (weights.name.encode("utf-8", "replace").decode(), file, "application/octet-stream"),
            }
            answer = self.create("/v1/teachers", files=files)
        return self._registered(answer, self.get_teacher)

    def register_teacher(self, spec: Mapping[str, Any], prefix: str) -> Json:
        """Register a teacher whose weights lie in the API's storage already, under `prefix`. They stay there."""
        answer = self.create("/v1/teachers", json={**spec, "prefix": prefix})
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
        path = f"/v1/teachers/{segment(identifier)}/checks"
        check = self.create(path, json={"dataset": dataset} | ({"images": images} if images else {}))
        while check["status"] in ("queued", "running"):
            time.sleep(1)
            check = self.json("GET", f"{path}/{segment(str(check['id']))}")
        return _without_failure(check)

    def list_teachers(self) -> Iterator[Json]:
        return self.iter_pages("/v1/teachers")

    def delete_teacher(self, identifier: str) -> None:
        self._delete("teachers", identifier)

    # Datasets

    def create_dataset(self, prefix: str, name: str, *, class_order: ClassOrder | None = None) -> Json:
        """Register a WebDataset that lies under `prefix` in the API's storage. Returns once every shard is checked."""
        body = {"prefix": prefix, "name": name} | ({"class_order": class_order} if class_order else {})
        return self._registered(self.create("/v1/datasets", json=body), self.get_dataset)

    def get_dataset(self, identifier: str) -> Json:
        return self._get("datasets", identifier)

    def list_datasets(self) -> Iterator[Json]:
        return self.iter_pages("/v1/datasets")

    def delete_dataset(self, identifier: str) -> None:
        self._delete("datasets", identifier)

    def download_dataset_file(self, identifier: str, name: str, path: Path) -> None:
        """Fetch a shard, `_info.json`, `preview.png` or `README.md` to a local file, whole or not at all."""
        self.download(f"/v1/datasets/{segment(identifier)}/files/{segment(name)}", path)

    # Models

    def get_model(self, identifier: str) -> Json:
        return self._get("models", identifier)

    def list_models(self) -> Iterator[Json]:
        return self.iter_pages("/v1/models")

    def delete_model(self, identifier: str) -> None:
        self._delete("models", identifier)

    def download_model_file(self, identifier: str, name: str, path: Path) -> None:
        """Fetch a file of a model to a local file, whole or not at all."""
        self.download(f"/v1/models/{segment(identifier)}/files/{segment(name)}", path)

    def predict(self, identifier: str, image: bytes) -> Json:
        """Classify an image (the bytes of its file): `student`, and `teacher`, null where that is gone."""
        kind = {"Content-Type": "application/octet-stream"}
        return self.json("POST", f"/v1/models/{segment(identifier)}/predict", content=image, headers=kind)

    # Jobs

    def create_synthesis_job(self, spec: Mapping[str, Any]) -> Json:
        return self.create("/v1/synthesis-jobs", json=dict(spec))

    def plan_synthesis_job(self, spec: Mapping[str, Any]) -> Json:
        """A dry run: the filled-in spec, teacher passes, images, shards and estimated bytes; creates nothing."""
        return self.json("POST", "/v1/synthesis-jobs", params={"dry_run": "true"}, json=dict(spec))

    def create_training_run(self, spec: Mapping[str, Any]) -> Json:
        return self.create("/v1/training-runs", json=dict(spec))

    def plan_training_run(self, spec: Mapping[str, Any]) -> Json:
        """A dry run: the filled-in spec, images, epochs and steps; creates nothing."""
        return self.json("POST", "/v1/training-runs", params={"dry_run": "true"}, json=dict(spec))

    def get_job(self, identifier: str, *, wait: float = 0) -> Json:
        """A job. With `wait` (seconds, up to 60) the answer comes on a change of status, or when they are over."""
        return self.json("GET", job_path(identifier), params={"wait": f"{wait:g}"} if wait else None)

    def list_jobs(self, kind: Kind, *, status: str | None = None, labels: str | None = None) -> Iterator[Json]:
        """Jobs of one kind, newest first; `labels` is a filter such as `team=vision,round=3`."""
        return self.iter_pages(f"/v1/{JOBS[kind]}", status=status, labels=labels)

    def cancel_job(self, identifier: str) -> Json:
        return self.json("POST", f"{job_path(identifier)}/cancel")

    def pause_job(self, identifier: str) -> Json:
        return self.json("POST", f"{job_path(identifier)}/pause")

    def resume_job(self, identifier: str) -> Json:
        return self.json("POST", f"{job_path(identifier)}/resume")

    def set_job_priority(self, identifier: str, priority: str) -> Json:
        """Change the place of a job among those that wait: `low`, `normal` or `high`."""
        return self.json("POST", f"{job_path(identifier)}/priority", json={"priority": priority})

    def retry_job(self, identifier: str, *, from_beginning: bool = False) -> Json:
        """Let a failed or canceled job go on, or start over: then what it made so far is deleted."""
        body = {"json": {"from": "beginning"}} if from_beginning else {}
        return self.create(f"{job_path(identifier)}/retry", **body)

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

    def events(self, identifier: str | None = None, *, after: str | None = None) -> Iterator[Json]:
        """Events of a job as they come, until it has ended; or, without end, of all jobs, each with its `job`.

        A connection that breaks is opened again where it was: no event is missed, and none comes twice.

        Args:
            identifier: of the job; by default all, from now on.
            after: the id of the last event received.

        Raises:
            Unavailable: if the API cannot be reached for longer than `STREAM_PATIENCE_SECONDS`.
        """
        path = "/v1/events" if identifier is None else f"{job_path(identifier)}/events"
        seen = time.monotonic()
        while True:
            try:
                for event in self.stream(path, after=after):
                    seen = time.monotonic()
                    if event is not None:
                        after = str(event["id"])
                        yield event
                if identifier is not None and self.get_job(identifier)["status"] in TERMINAL:
                    yield from self.iter_pages(path, after=after)
                    return
            except Unavailable:
                if time.monotonic() - seen > STREAM_PATIENCE_SECONDS:
                    raise
            time.sleep(RETRY_PAUSES[-1])

    def list_deliveries(self, identifier: str) -> Iterator[Json]:
        """List what the job's webhook is told, oldest first, with each attempt."""
        return self.iter_pages(f"{job_path(identifier)}/deliveries")

    def redeliver(self, identifier: str, delivery: str) -> Json:
        """Tell a job's webhook again; returns the delivery."""
        return self.json("POST", f"{job_path(identifier)}/deliveries/{segment(delivery)}/redeliver")

    def get_log(self, identifier: str) -> str:
        """A job's log: notes of its attempts and why they ended, a line each."""
        response = self.send("GET", f"{job_path(identifier)}/log")
        raise_for_status(response)
        return response.text

    def list_metrics(self, identifier: str) -> Iterator[Json]:
        """The rows of a training run, one an epoch."""
        return self.iter_pages(f"{job_path(identifier)}/metrics")

    def list_checkpoints(self, identifier: str) -> Iterator[Json]:
        """The checkpoints that a training run keeps, newest first."""
        return self.iter_pages(f"{job_path(identifier)}/checkpoints")

    def download_checkpoint_file(self, identifier: str, checkpoint: str, name: str, path: Path) -> None:
        """Fetch a file of a run's checkpoint to a local file, whole or not at all.

        Raises:
            NotFound: if the run does not keep it any more.
        """
        self.download(f"{job_path(identifier)}/checkpoints/{segment(checkpoint)}/files/{segment(name)}", path)

    def download_preview(self, identifier: str, path: Path) -> None:
        """Fetch the grid of a synthesis job's images so far."""
        self.download(f"{job_path(identifier)}/preview.png", path)

    # The service itself

    def is_ready(self) -> bool:
        """Tell whether the API can reach Redis and storage.

        Raises:
            Unavailable: if no API answers.
        """
        return self.send("GET", "/readyz").status_code == 200

    def iter_pages(self, path: str, **params: str | None) -> Iterator[Json]:
        """The items of a collection, a page at a time, for as long as the caller asks for more."""
        query = {key: value for key, value in params.items() if value is not None} | {"limit": str(PAGE)}
        while True:
            page = self.json("GET", path, params=query)
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
        return self.json("GET", f"/v1/{collection}/{segment(identifier)}")

    def _delete(self, collection: Collection, identifier: str) -> None:
        raise_for_status(self.send("DELETE", f"/v1/{collection}/{segment(identifier)}"))


def job_path(identifier: str) -> str:
    """The path of a job in the API.

    Raises:
        InvalidInput: if the identifier is of neither kind of job.
    """
    prefix = identifier.partition("-")[0]
    kinds: dict[str, Kind] = {"syn": "synthesis", "run": "training"}
    if prefix not in kinds:
        raise InvalidInput(f"{identifier!r} is no job: synthesis jobs start with syn-, training runs with run-")
    return f"/v1/{JOBS[kinds[prefix]]}/{segment(identifier)}"


def _without_failure(item: Json) -> Json:
    """The item. Raises `InvalidInput` with what the inspector found wrong, if it has failed."""
    if item.get("status") == "failed":
        error = item["error"]
        raise InvalidInput(str(error["message"]), code=str(error["code"]), errors=fields_of(error))
    return item
