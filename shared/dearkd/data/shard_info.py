"""`_info.json` and `class_names.json`: what lies beside shards that other tools made. No torch here."""

import json
import re
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field

from dearkd.data.json_files import read_json
from dearkd.data.shard_files import Shard
from dearkd.errors import InvalidInput
from dearkd.specs import Name
from dearkd.specs.class_order import stored_name

INFO = "_info.json"
"""Which shards there are and how many samples each holds, in timm's form."""
CLASS_NAMES = "class_names.json"
"""A JSON list beside shards of unnamed classes, or beside class folders: a name for each index."""

SPLITS = {
    "train": "train(?:ing)?",
    "val": "val(?:id(?:ation)?)?",
    "test": "test(?:ing)?",
    "dev": "dev(?:el)?",
    "eval": "eval(?:uation)?",
    "holdout": "hold[-_ ]?out",
}
"""How names tell of splits, as regular expressions."""
ANY_SPLIT = "|".join(f"(?P<{kind}>{pattern})" for kind, pattern in SPLITS.items())

_IN_NAME = re.compile(rf"(?<![a-z])(?:{ANY_SPLIT})(?:set)?(?![a-z])", re.IGNORECASE)

MAX_BYTES = 2**24
"""Of either file: room for as many names as there may be, of 160 bytes each."""
MAX_CLASSES = 100_000
"""As of teachers; a label beyond that is a mistake, not a class."""
MAX_SHARDS = 100_000
"""Of a dataset: each is an entry of its manifest."""
MAX_NAME = 900
"""Characters of a name, of a class or a shard."""
MAX_SPLITS = 20


def _few(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > MAX_SPLITS:
        raise ValueError(f"{len(value)} splits, at most {MAX_SPLITS} are read")
    return value


# fail_fast: a file may hold millions of wrong things, and a message for each takes a hundred times its memory.
_Name = Annotated[str, Field(max_length=MAX_NAME)]
_Names = Annotated[list[Annotated[Name, Field(max_length=MAX_NAME)]], Field(fail_fast=True, max_length=MAX_CLASSES)]


class _Split(BaseModel):
    filenames: list[_Name] = Field(min_length=1, max_length=MAX_SHARDS, fail_fast=True)
    shard_lengths: list[int] | None = Field(default=None, max_length=MAX_SHARDS, fail_fast=True)
    num_samples: int | None = None


class _Info(BaseModel):
    splits: Annotated[dict[_Name, _Split], BeforeValidator(_few), Field(min_length=1)]


def read_info(text: bytes, where: str) -> dict[str, int | None]:
    """The shards that an `_info.json` names, in order, and the samples it says they hold, where it does.

    Raises:
        InvalidInput: naming the file (`where`), if it is not as timm writes it, contradicts itself, or has several
            splits: merged they would train on what is there to validate.
    """
    remedy = "correct or remove it"
    splits = read_json(_Info, text, where=where, what="as timm writes it", remedy=remedy).splits
    if len(splits) > 1:
        raise InvalidInput(
            f"{where} has {len(splits)} splits ({', '.join(splits)}), but a dataset is one: register each split's "
            "shards under a prefix of its own"
        )
    (split,) = splits.values()
    names, lengths = split.filenames, split.shard_lengths
    if len(set(names)) != len(names):
        raise InvalidInput(f"{where} names a shard twice; {remedy}")
    if lengths is None:
        return dict.fromkeys(names)
    if len(lengths) != len(names):
        raise InvalidInput(f"{where} names {len(names)} shards, but has {len(lengths)} shard_lengths; {remedy}")
    if split.num_samples not in (None, sum(lengths)):
        raise InvalidInput(
            f"{where} counts {split.num_samples} samples, but {sum(lengths)} by its shard_lengths; {remedy}"
        )
    return dict(zip(names, lengths, strict=True))


def read_class_names(text: bytes, where: str) -> list[str]:
    """Raises `InvalidInput`, naming the file (`where`), if it is no list of names."""
    what, remedy = "a list of names", "give a JSON list of strings, one for each class, in order"
    names: list[str] = read_json(_Names, text, where=where, what=what, remedy=remedy)
    if not names:
        raise InvalidInput(f"{where} is empty; {remedy}")
    return [stored_name(name) for name in names]


def split_of_shard(name: str) -> str | None:
    """Which split the name of a shard tells (imagenet-train-000.tar, val/0.tar), or None."""
    found = _IN_NAME.search(name)
    return found.lastgroup if found else None


def info_json(shards: Iterable[Shard]) -> bytes:
    """`_info.json`, as timm's `wds/` reader wants it."""
    listed = list(shards)
    train = {
        "name": "train",
        "num_samples": sum(shard.samples for shard in listed),
        "filenames": [shard.name for shard in listed],
        "shard_lengths": [shard.samples for shard in listed],
    }
    return (json.dumps({"splits": {"train": train}}, indent=2) + "\n").encode()
