"""Stored models as networks. Their code is the trainer's, which nothing here imports.

It provides a loader under the entry point group `dearkd.students`: a function of the object in `config.json` and of the
path of the weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Literal

from pydantic import BaseModel, Field
from torch import nn

from dearkd.data.json_files import read_json
from dearkd.errors import CorruptData, InvalidInput
from dearkd.storage.catalog import Model, fetch_model_file
from dearkd.storage.file_cache import FileCache
from dearkd.storage.objects import Storage

GROUP = "dearkd.students"


class InputConfig(BaseModel):
    """The input of a student, as timm's `pretrained_cfg` has it."""

    input_size: tuple[Literal[1, 3], int, int]
    mean: list[float]
    std: list[float]
    crop_pct: float = Field(default=1.0, gt=0, le=1)


class StudentConfig(BaseModel):
    """The part of a student's `config.json` that is read here; the whole of it builds the model."""

    num_classes: int
    label_names: list[str] | None = None
    pretrained_cfg: InputConfig

    @property
    def class_names(self) -> Sequence[str]:
        return self.label_names or [str(index) for index in range(self.num_classes)]


@dataclass(frozen=True, slots=True)
class StoredStudent:
    """A student in eval mode on the CPU, and its configuration."""

    network: nn.Module
    config: StudentConfig


def load_student(storage: Storage, model: Model, cache: FileCache) -> StoredStudent:
    """Load a stored model.

    Raises:
        InvalidInput: if no installed package can load students, or the configuration builds none.
        CorruptData: if its files are not what its manifest says, or `config.json` does not describe its input.
    """
    plugins = list(entry_points(group=GROUP))
    if not plugins:
        raise InvalidInput(f"nothing here can load a model: install what provides {GROUP}, such as dearkd[trainer]")
    raw = fetch_model_file(storage, model, "config.json", cache).read_bytes()
    try:
        remedy = "train it again"
        config = read_json(StudentConfig, raw, where="config.json", what="that of a trained student", remedy=remedy)
        whole = read_json(dict[str, Any], raw, where="config.json", what="an object", remedy=remedy)
    except InvalidInput as error:
        raise CorruptData(f"{model.id}: {error.message}") from None
    weights = fetch_model_file(storage, model, "model.safetensors", cache)
    return StoredStudent(plugins[0].load()(whole, weights), config)
