"""`_info.json` and `class_names.json`: what lies beside shards that other tools made. No torch here."""

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field

from dearkd.data.json_files import read_json
from dearkd.errors import CorruptData, InvalidInput, Unavailable
from dearkd.specs import Name
from dearkd.specs.class_order import stored_name
from dearkd.storage.objects import Storage

INFO = "_info.json"
"""Which shards there are and how many samples each holds, in timm's form."""
CLASS_NAMES = "class_names.json"
"""A JSON list beside shards of unnamed classes, or beside class folders: a name for each index."""
PACKED_SUFFIXES = (".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tar.zst", ".tar.lz4")

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


def read_beside_shards(storage: Storage, prefix: str, name: str) -> bytes:
    """One of these files, under a prefix.

    Raises:
        NotFound: if it is not there.
        InvalidInput: at `/prefix`, if it is larger than such a file can be; nothing of it was read.
    """
    where = f"{prefix}/{name}"
    size = storage.size(where)
    if size > MAX_BYTES:
        raise InvalidInput.at(
            "/prefix", f"{where} has {size} bytes, but at most {MAX_BYTES} are read of it: correct or remove it"
        )
    return storage.read(where)


def listed_shards(storage: Storage, prefix: str) -> dict[str, int | None]:
    """The shards of an unregistered set: those that `_info.json` names, else every `*.tar` under the prefix.

    Returns:
        Names, and the samples that `_info.json` says each holds; None without it.

    Raises:
        InvalidInput: at `/prefix` if there are none (`no_shards`), some are compressed, their names tell of several
            splits, or `_info.json` cannot be used (see `read_info`) or names one that is not there.
    """
    try:
        present = {stored.key.removeprefix(f"{prefix}/") for stored in storage.objects(prefix)}
    except CorruptData as error:
        raise InvalidInput.at("/prefix", error.message) from None
    except Unavailable:
        # So says a local store, too, where a name on the way is a file. What is wrong with the store stays its fault.
        names = prefix.split("/")
        for above in ("/".join(names[:count]) for count in range(1, len(names))):
            if storage.exists(above):
                raise InvalidInput.at("/prefix", f"{above!r} is a file in storage: nothing lies below it") from None
        raise
    packed = sorted(name for name in present if name.lower().endswith(PACKED_SUFFIXES))
    if packed:
        raise InvalidInput.at(
            "/prefix",
            f"{len(packed)} compressed tars lie under {prefix!r}, such as {packed[0]!r}, and only plain *.tar are "
            "read: unpack each to a .tar (gunzip, unxz, unzstd), or move them away",
        )
    if INFO not in present:
        names = sorted(name for name in present if name.endswith(".tar"))
        if not names:
            raise InvalidInput.at(
                "/prefix", f"there is no *.tar and no {INFO} under {prefix!r} in storage", code="no_shards"
            )
        if len(names) > MAX_SHARDS:
            raise InvalidInput.at(
                "/prefix",
                f"there are {len(names)} *.tar under {prefix!r}, but a dataset has at most {MAX_SHARDS} shards: "
                "register parts of it, or make larger shards",
            )
        splits = {split: name for name in reversed(names) if (split := split_of_shard(name)) is not None}
        if len(splits) > 1:
            told = ", ".join(f"{name} of {split}" for split, name in sorted(splits.items()))
            raise InvalidInput.at(
                "/prefix",
                f"the shards under {prefix!r} are of {len(splits)} splits ({told}), and a dataset is one: register "
                f"each split's under a prefix of its own, or name those of one in {INFO}",
            )
        return dict.fromkeys(names)
    where = f"{prefix}/{INFO}"
    try:
        listed = read_info(read_beside_shards(storage, prefix, INFO), where)
    except InvalidInput as error:
        if error.errors:
            raise
        raise InvalidInput.at("/prefix", error.message) from None
    missing = [name for name in listed if name not in present]
    if missing:
        raise InvalidInput.at("/prefix", f"{where} names {missing[0]!r}, which is not there")
    return listed
