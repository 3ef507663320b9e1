"""A check that a file is safetensors, by its header alone and without torch; the inspector checks that it fits."""

import json
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Final

from dearkd.errors import InvalidInput
from dearkd.storage.objects import Storage

REMEDY = "write it with dearkd.vision.teachers.save_teacher, or save the state_dict() with safetensors.torch.save_file"
POINTER = "/weights"

MAX_HEADER_BYTES: Final = 10 * 2**20
MAX_TENSORS: Final = 100_000
MAX_METADATA: Final = 10_000
MAX_RANK: Final = 8
MAX_ENTRY_CHARACTERS: Final = 1000
"""The most characters of a tensor's entry in the header; eight dimensions of eighteen digits take a third of that."""

_ONE_AT_A_TIME = threading.Lock()
"""A lock: parsing holds the interpreter, and eight uploads at once would slow all other requests."""
_DECODER: Final = json.JSONDecoder()
_BLANKS: Final = re.compile(r"[ \t\r\n]*")

BITS: Mapping[str, int] = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "I64": 64, "U64": 64,
    "F64": 64,
}  # fmt: skip

_LOOKS_LIKE: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes (.pth, .pt)"),
    (b"\x80", "a Python pickle, as old versions of torch.save write (.pth, .pt)"),
    (b"\x89HDF", "an HDF5 file (.h5)"),
    (b"GGUF", "a GGUF file"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"<", "HTML or XML"),
    (b"{", "JSON"),
)


def check_safetensors(storage: Storage, key: str, size: int) -> None:
    """Check length, JSON and offsets of a stored safetensors file's header.

    Raises:
        InvalidInput: at `/weights`, saying what it is instead, or what is wrong with it.
    """
    start = b"".join(storage.stream(key, start=0, end=min(8, size))) if size else b""
    length = int.from_bytes(start, "little")
    if size < 10 or not 2 <= length <= size - 8:
        raise _refusal(_guess(start, size))
    if length > MAX_HEADER_BYTES:
        raise _refusal(f"its header has {length} bytes, and {MAX_HEADER_BYTES} are allowed")
    try:
        text = b"".join(storage.stream(key, start=8, end=8 + length)).decode()
        if text[0] == "[":
            raise _refusal("its header is no JSON object")
        with _ONE_AT_A_TIME:
            _check_offsets(_tensors(text), size - 8 - length)
    except (ValueError, IndexError):
        raise _refusal(_guess(start, size)) from None


def _check_offsets(tensors: Iterator[tuple[str, Any]], data_bytes: int) -> None:
    """Tensors must cover the file's data exactly, without gaps or overlaps."""
    spans: dict[str, tuple[int, int]] = {}
    for name, entry in tensors:
        if name in spans:
            raise _refusal(f"tensor {name!r:.200} is there twice")
        if len(spans) == MAX_TENSORS:
            raise _refusal(f"it has more than {MAX_TENSORS} tensors, which are allowed")
        spans[name] = _span(name, entry, data_bytes)
    if not spans:
        raise _refusal("it holds no tensor")
    end = 0
    for start, stop, name in sorted((*span, name) for name, span in spans.items()):
        if start != end:
            raise _refusal(f"tensor {name!r:.200} starts at byte {start} of the data, not at {end}")
        end = stop
    if end != data_bytes:
        raise _refusal(
            f"its header describes {end} bytes of data, but {data_bytes} are there: it is cut short or altered"
        )


def _span(name: str, entry: Any, data_bytes: int) -> tuple[int, int]:
    try:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = isinstance(shape, list) and all(type(number) is int and number >= 0 for number in [*shape, start, stop])
        bits = BITS[dtype] if whole else -1
    except (KeyError, TypeError, ValueError):
        bits = -1
    if bits < 0 or not start <= stop:
        raise _refusal(
            f"the header's entry of tensor {name!r:.200} is not as safetensors writes it, with "
            f"{MAX_RANK} dimensions at most"
        )
    if len(shape) > MAX_RANK:
        raise _refusal(f"tensor {name!r:.200} has {len(shape)} dimensions, and {MAX_RANK} are allowed")
    if 0 in shape:
        bits = 0
    for number in shape:
        bits *= number
        if bits > data_bytes * 8:
            break  # more than there is: no need to know how much
    if bits != (stop - start) * 8:
        raise _refusal(
            f"tensor {name!r:.200} is {dtype} of shape {shape!r:.200}, which does not take the bytes given for it"
        )
    return start, stop


def _tensors(text: str) -> Iterator[tuple[str, Any]]:
    """Names and entries of the header's tensors, one after the other.

    A JSON parser would build the whole header in one step that nothing interrupts: a hostile one takes gigabytes and
    seconds. The format is flat, so that each entry is found by its end and parsed by itself.

    Raises:
        ValueError, IndexError: if it is no such JSON.
    """
    at = _behind(text, 0, "{")
    while text[at] != "}":
        name, at = _string(text, at)
        at = _behind(text, at, ":")
        if name == "__metadata__":
            at = _behind_metadata(text, at)
        else:
            end = text.find("}", at, at + MAX_ENTRY_CHARACTERS) + 1
            yield name, _entry(text[at:end])
            at = end
        at = _behind_comma(text, at)
    if _beyond_blanks(text, at + 1) != len(text):
        raise ValueError("something follows the object")


def _behind_metadata(text: str, at: int) -> int:
    at = _behind(text, at, "{")
    entries = 0
    while text[at] != "}":
        entries += 1
        if entries > MAX_METADATA:
            raise _refusal(f"its metadata have more than {MAX_METADATA} entries, which are allowed")
        at = _behind(text, _string(text, at)[1], ":")
        at = _behind_comma(text, _string(text, at)[1])
    return at + 1


def _entry(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key is there twice")
    return dict(pairs)


def _string(text: str, at: int) -> tuple[str, int]:
    """The JSON string that starts at `at`, and the place behind it."""
    if text[at] != '"':
        raise ValueError("no string")
    value, end = _DECODER.raw_decode(text, at)
    return value, end


def _behind(text: str, at: int, mark: str) -> int:
    """The place behind blanks, the mark, and blanks."""
    at = _beyond_blanks(text, at)
    if text[at] != mark:
        raise ValueError(f"no {mark}")
    return _beyond_blanks(text, at + 1)


def _behind_comma(text: str, at: int) -> int:
    """The place of the next member, or of the brace that ends them."""
    at = _beyond_blanks(text, at)
    if text[at] == "}":
        return at
    at = _behind(text, at, ",")
    if text[at] == "}":
        raise ValueError("a comma before the end")
    return at


def _beyond_blanks(text: str, at: int) -> int:
    match = _BLANKS.match(text, at)
    assert match is not None  # also of none
    return match.end()


def _guess(start: bytes, size: int) -> str:
    if not size:
        return "it is empty"
    for magic, what in _LOOKS_LIKE:
        if start.startswith(magic):
            return f"it looks like {what}"
    return f"it starts with {start.hex(' ')}, which is no safetensors header"


def _refusal(what: str) -> InvalidInput:
    return InvalidInput.at(POINTER, f"not a safetensors file: {what}; {REMEDY}", code="not_safetensors")
