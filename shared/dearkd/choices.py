"""Values that a command, a request and a record choose among. Nothing is imported here, so that `--help` is fast."""

from enum import StrEnum
from typing import Literal

Kind = Literal["synthesis", "training"]
"""Kind of a job."""
Status = Literal["blocked", "queued", "running", "paused", "canceling", "succeeded", "failed", "canceled"]
"""State of a job."""
PresetName = Literal["auto", "draft", "published-imagenet", "published-cifar"]
"""Preset of a synthesis job."""
Recipe = Literal["deit", "small"]
"""Recipe of a training run."""
Device = Literal["cpu", "cuda"]
"""Device that a worker works on."""
Scope = Literal["read", "submit", "admin"]
"""Permission of an API key; each includes those before it."""
ClassOrder = Literal["name", "natural", "number", "given"]
"""Order of a dataset's labels, as its maker states it: that of its class folders, or a given list."""


class DatasetForm(StrEnum):
    """Form in which a dataset is fetched."""

    shards = "shards"
    hf = "hf"
    """Parquet files for Hugging Face's `datasets`."""


class FolderOrder(StrEnum):
    """Order in which class folders are labels."""

    name = "name"
    """The order in which torchvision sorts folders: 1, 10, 2."""
    number = "number"
    """The order of the whole numbers that all names are; label 0 is the least of them."""
    natural = "natural"
    """The order in which timm sorts folders: digits as numbers, text in lower case."""


class KeyScope(StrEnum):
    """`Scope` on the command line."""

    read = "read"
    submit = "submit"
    admin = "admin"
