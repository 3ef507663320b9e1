"""Calls on what lies in storage: teachers, datasets and models."""

import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from dearkd.answers import (
    Check,
    Prediction,
    RegisteredDataset,
    RegisteredTeacher,
    Registering,
    RegistrationError,
    TrainedModel,
)
from dearkd.choices import ClassOrder
from dearkd.client.bodies import json_of, request_body
from dearkd.client.paths import Collection, path_of, segment
from dearkd.client.sending import Sender, sent
from dearkd.client.transfers import OnBytes, Upload, download
from dearkd.errors import Conflict, FieldError, InvalidInput
from dearkd.specs import TeacherSpec
from dearkd.specs.requests import CheckRequest, DatasetRegistration

RegisteredT = TypeVar("RegisteredT", RegisteredTeacher, RegisteredDataset)


class ResourceCalls(Sender):
    """The calls on teachers, datasets and models."""

    # Teachers

    async def create_teacher(
        self, spec: TeacherSpec | Mapping[str, Any], weights: Path, *, on_progress: OnBytes | None = None
    ) -> RegisteredTeacher:
        """Upload a teacher: its spec, and a safetensors file, which is streamed. Returns once it is registered.

        Args:
            spec: how to rebuild the CNN; as an object it is the API alone that checks it.
            weights: the file.
            on_progress: told of the bytes that were sent.
        """
        with Upload(weights, on_progress) as file:
            files = {
                "teacher": (None, json.dumps(json_of(spec)), "application/json"),
                # A file's name may hold bytes that are no text.
                "weights": (weights.name.encode("utf-8", "replace").decode(), file, "application/octet-stream"),
            }
            answer = await self._created("/v1/teachers", files=files)
        return await self._registered(RegisteredTeacher, answer)

    async def register_teacher(self, spec: TeacherSpec | Mapping[str, Any], prefix: str) -> RegisteredTeacher:
        """Register a teacher whose weights lie in the API's storage already, under `prefix`. They stay there."""
        answer = await self._created("/v1/teachers", json={**json_of(spec), "prefix": prefix})
        return await self._registered(RegisteredTeacher, answer)

    async def get_teacher(self, identifier: str) -> RegisteredTeacher:
        """A teacher. Raises `Conflict` (`registering`) while it is being checked, `InvalidInput` if it was refused."""
        return self._ready(RegisteredTeacher, await self._object("GET", path_of("teachers", identifier)))

    async def get_registration(self, identifier: str) -> RegisteredTeacher | RegisteredDataset | Registering:
        """A teacher or dataset as it is, also while it is being checked, and after it was refused."""
        is_dataset = identifier.startswith("ds-")
        value = await self._object("GET", path_of("datasets" if is_dataset else "teachers", identifier))
        if value.get("status", "ready") != "ready":
            return self._read(Registering, value)
        return self._read(RegisteredDataset, value) if is_dataset else self._read(RegisteredTeacher, value)

    async def check_teacher(self, identifier: str, dataset: str, *, images: int | None = None) -> Check:
        """Try a teacher on a registered dataset of real images. Returns once the check has ended.

        Args:
            identifier: of the teacher.
            dataset: its id.
            images: at most so many; by default the API's own bound.

        Raises:
            InvalidInput: if it has failed, saying why.
        """
        path = f"{path_of('teachers', identifier)}/checks"
        given = {"dataset": dataset} | ({} if images is None else {"images": images})
        check = await self._create(Check, path, json=request_body(CheckRequest, None, given))
        while check.status in ("queued", "running"):
            await self._transport.sleep(1)
            check = await self._get(Check, f"{path}/{segment(check.id)}")
        if check.error is not None:
            raise _refusal(check.error)
        return check

    def list_teachers(self) -> AsyncIterator[RegisteredTeacher]:
        return self._pages(RegisteredTeacher, "/v1/teachers")

    async def delete_teacher(self, identifier: str) -> None:
        await sent(self._transport, "DELETE", path_of("teachers", identifier))

    # Datasets

    async def create_dataset(
        self, prefix: str, name: str, *, class_order: ClassOrder | None = None
    ) -> RegisteredDataset:
        """Register a WebDataset that lies under `prefix` in the API's storage. Returns once every shard is checked."""
        given = {"prefix": prefix, "name": name} | ({} if class_order is None else {"class_order": class_order})
        answer = await self._created("/v1/datasets", json=request_body(DatasetRegistration, None, given))
        return await self._registered(RegisteredDataset, answer)

    async def get_dataset(self, identifier: str) -> RegisteredDataset:
        """A dataset's manifest. Raises as `get_teacher` does."""
        return self._ready(RegisteredDataset, await self._object("GET", path_of("datasets", identifier)))

    def list_datasets(self) -> AsyncIterator[RegisteredDataset]:
        return self._pages(RegisteredDataset, "/v1/datasets")

    async def delete_dataset(self, identifier: str) -> None:
        await sent(self._transport, "DELETE", path_of("datasets", identifier))

    async def download_dataset_file(
        self, identifier: str, name: str, path: Path, *, on_progress: OnBytes | None = None, resume: bool = True
    ) -> None:
        """Fetch a shard, `_info.json`, `README.md` or a picture to a local file, whole or not at all.

        A shard is verified, and goes on from what an interrupted download has left beside `path`.

        Args:
            identifier: of the dataset.
            name: of the file.
            path: of the local file.
            on_progress: told of the bytes that have come.
            resume: False to begin anew and to leave nothing behind.

        Raises:
            CorruptData: if what came is not what the manifest says.
            Conflict: if another process is fetching the same file to the same place.
        """
        url = f"{path_of('datasets', identifier)}/files/{segment(name)}"
        await download(self._transport, url, path, on_progress=on_progress, resume=resume)

    # Models

    async def get_model(self, identifier: str) -> TrainedModel:
        return await self._get(TrainedModel, path_of("models", identifier))

    def list_models(self) -> AsyncIterator[TrainedModel]:
        return self._pages(TrainedModel, "/v1/models")

    async def delete_model(self, identifier: str) -> None:
        await sent(self._transport, "DELETE", path_of("models", identifier))

    async def download_model_file(
        self, identifier: str, name: str, path: Path, *, on_progress: OnBytes | None = None, resume: bool = True
    ) -> None:
        """Fetch a file of a model to a local file, whole or not at all: as `download_dataset_file` fetches a shard."""
        url = f"{path_of('models', identifier)}/files/{segment(name)}"
        await download(self._transport, url, path, on_progress=on_progress, resume=resume)

    async def predict(self, identifier: str, image: bytes, *, attention: bool = False) -> Prediction:
        """Classify an image (the bytes of its file): `student`, and `teacher`, None where that is gone.

        Args:
            identifier: the model's.
            image: PNG, WebP, JPEG or another format that datasets are made of.
            attention: ask also where the student looked.
        """
        kind = {"Content-Type": "application/octet-stream"}
        asked = {"attention": "true"} if attention else {}
        path = f"{path_of('models', identifier)}/predict"
        return await self._post(Prediction, path, params=asked, content=image, headers=kind)

    async def _registered(self, kind: type[RegisteredT], value: dict[str, Any]) -> RegisteredT:
        """The resource once the inspector is done with it: what takes it longer than a minute is answered before."""
        while value.get("status") == "registering":
            await self._transport.sleep(1)
            collection: Collection = "teachers" if kind is RegisteredTeacher else "datasets"
            value = await self._object("GET", path_of(collection, self._read(Registering, value).id))
        return self._ready(kind, value)

    def _ready(self, kind: type[RegisteredT], value: dict[str, Any]) -> RegisteredT:
        """The resource of an answer, if it is registered."""
        if value.get("status", "ready") == "ready":
            return self._read(kind, value)
        found = self._read(Registering, value)
        if found.error is not None:
            raise _refusal(found.error)
        raise Conflict(f"{found.id} is being registered: ask again when it has been checked", code="registering")


def _refusal(error: RegistrationError) -> InvalidInput:
    """The error of what the inspector found wrong."""
    fields = [FieldError(field.pointer, field.detail) for field in error.errors]
    return InvalidInput(error.message, code=error.code, errors=fields)
