"""Shards in storage that no manifest names yet, and the choice of those that become a dataset."""

from dearkd.data.shard_info import INFO, MAX_BYTES, MAX_SHARDS, read_info, split_of_shard
from dearkd.errors import CorruptData, InvalidInput, Unavailable
from dearkd.storage.objects import Storage

PACKED_SUFFIXES = (".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tar.zst", ".tar.lz4")


def read_beside_shards(storage: Storage, prefix: str, name: str) -> bytes:
    """Read `_info.json` or `class_names.json` under a prefix.

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


def keys_under(storage: Storage, prefix: str) -> list[str]:
    """List the keys of all objects under a prefix that came from outside.

    Raises:
        InvalidInput: at `/prefix`, if what lies there has no key, or something above it is a file.
    """
    try:
        return [stored.key for stored in storage.objects(prefix)]
    except CorruptData as error:
        raise InvalidInput.at("/prefix", error.message) from None
    except Unavailable:
        # So says a local store, too, where a name on the way is a file. What is wrong with the store stays its fault.
        names = prefix.split("/")
        for above in ("/".join(names[:count]) for count in range(1, len(names))):
            if storage.exists(above):
                raise InvalidInput.at("/prefix", f"{above!r} is a file in storage: nothing lies below it") from None
        raise


def listed_shards(storage: Storage, prefix: str) -> dict[str, int | None]:
    """List the shards of an unregistered set: those that `_info.json` names, else every `*.tar` under the prefix.

    Returns:
        Names, and the samples that `_info.json` says each holds; None without it.

    Raises:
        InvalidInput: at `/prefix` if there are none (`no_shards`), some are compressed, their names tell of several
            splits, or `_info.json` cannot be used (see `read_info`) or names one that is not there.
    """
    present = {key.removeprefix(f"{prefix}/") for key in keys_under(storage, prefix)}
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
