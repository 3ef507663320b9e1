"""`_info.json` and `class_names.json`: what lies beside shards that other tools made. No torch here."""

import codecs

from pydantic import BaseModel, Field

from dearkd.errors import InvalidInput
from dearkd.json_files import read_json
from dearkd.storage import Storage

INFO = "_info.json"
"""Which shards there are and how many samples each holds, in timm's form."""
CLASS_NAMES = "class_names.json"
"""A JSON list beside shards of unnamed classes, or beside class folders: a name for each index."""


class _Split(BaseModel):
    filenames: list[str] = Field(min_length=1)
    shard_lengths: list[int] | None = None
    num_samples: int | None = None


class _Info(BaseModel):
    splits: dict[str, _Split] = Field(min_length=1)


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
    text = text.removeprefix(codecs.BOM_UTF8)  # Windows editors begin files with it
    what, remedy = "a list of names", "give a JSON list of strings, one for each class, in order"
    names = read_json(list[str], text, where=where, what=what, remedy=remedy)
    if not names:
        raise InvalidInput(f"{where} is empty; {remedy}")
    return names


def listed_shards(storage: Storage, prefix: str) -> dict[str, int | None]:
    """The shards of an unregistered set: those that `_info.json` names, else every `*.tar` under the prefix.

    Returns:
        Names, and the samples that `_info.json` says each holds; None without it.

    Raises:
        InvalidInput: at `/prefix` if there are none (`no_shards`), or `_info.json` cannot be used (see `read_info`) or
            names one that is not there.
    """
    present = {stored.key.removeprefix(f"{prefix}/") for stored in storage.objects(prefix)}
    if INFO not in present:
        names = sorted(name for name in present if name.endswith(".tar"))
        if not names:
            raise InvalidInput.at(
                "/prefix", f"there is no *.tar and no {INFO} under {prefix!r} in storage", code="no_shards"
            )
        return dict.fromkeys(names)
    where = f"{prefix}/{INFO}"
    try:
        listed = read_info(storage.read(where), where)
    except InvalidInput as error:
        raise InvalidInput.at("/prefix", error.message) from None
    missing = [name for name in listed if name not in present]
    if missing:
        raise InvalidInput.at("/prefix", f"{where} names {missing[0]!r}, which is not there")
    return listed
