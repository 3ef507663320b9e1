"""Writing of shards through webdataset, whose import loads torch; `dearkd.data.shard_files` writes the same without."""

from collections.abc import Iterable
from functools import partial
from typing import BinaryIO

from webdataset import TarWriter

from dearkd.data import shard_files
from dearkd.data.shard_files import Sample


def pack(file: BinaryIO, samples: Iterable[Sample]) -> None:
    """Write a tar through `webdataset.TarWriter`, with time, owner and mode fixed: its bytes depend on the samples."""
    # A time that is no int would become an extended header of every member.
    with TarWriter(file, user="", group="", mode=0o644, mtime=0, encoder=False) as tar:
        for sample in samples:
            tar.write({"__key__": sample.key, **sample.members()})


write_shard = partial(shard_files.write_shard, pack=pack)
