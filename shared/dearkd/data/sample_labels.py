"""The label of a sample in a shard: the text of its `.cls`."""

import codecs
import re
from collections.abc import Iterable

MAX_LABEL_BYTES = 64


def parse_label(text: bytes) -> int:
    """Read a label. Raises `ValueError` if it is no whole number in plain digits; `int` would take 1_0 for ten."""
    text = text.removeprefix(codecs.BOM_UTF8)
    if len(text) > MAX_LABEL_BYTES or re.fullmatch(rb"-?[0-9]+", text.strip()) is None:
        raise ValueError(f"{text[:40]!r} is no whole number")
    return int(text)


def no_label(suffixes: Iterable[str]) -> str:
    """Say that a sample has no `.cls`, and which other members might hold a label, but are not read."""
    elsewhere = sorted(f".{suffix}" for suffix in suffixes if suffix in ("txt", "json", "label", "class", "target"))
    unread = f" (none is read from {', '.join(elsewhere)})" if elsewhere else ""
    return f"has no label{unread}; add a .cls with its class index"
