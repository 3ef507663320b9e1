"""Kinds of files that weights come in, told by their first bytes, and the reasons why some are not taken."""

import zipfile
from pathlib import Path
from typing import Literal

from dearkd.errors import InvalidInput

Kind = Literal["safetensors", "pickle"]

STATE_DICT = "torch.save(model.state_dict(), 'weights.pth')"
"""The remedy for most: the form of weights that every tool of torch writes."""

FOLDED = (
    "an ONNX file, and exporting to ONNX folds BatchNorm into the convolutions: the statistics that images are made "
    f"from are gone. Give the checkpoint that it was exported from, or write it again: {STATE_DICT}"
)
_SCRIPT = (
    "a TorchScript archive, and loading one runs the code in it: in Python, torch.jit.load a file that you trust and "
    f"{STATE_DICT}"
)
_EXPORTED = (
    "an archive of torch.export, and loading one is not safe for files of others: in Python, torch.export.load a file "
    "that you trust and torch.save(program.state_dict, 'weights.pth')"
)
_TAKEN = "give weights as safetensors, or as torch.save writes a state_dict()"
_BEGINNINGS: dict[bytes, str] = {
    b"\x89HDF\r\n\x1a\n": f"an HDF5 file, as Keras writes it, and teachers are networks of timm: {_TAKEN}",
    b"version https://git-lfs": "a pointer of Git LFS and not the file itself: fetch that with `git lfs pull`",
    b"\x1f\x8b": "compressed with gzip: unpack it first",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it first",
    b"<": f"a page of HTML or XML, as a failed download leaves it: {_TAKEN}",
}


def kind_of(path: Path) -> Kind:
    """The way in which a file holds weights. Nothing in it is run, and only its beginning and its index are read.

    Raises:
        InvalidInput: naming what the file is, why that is not taken, and what to give instead.
    """
    with path.open("rb") as file:
        start = file.read(1024)
    if not start:
        raise InvalidInput(f"{path} is empty: copy or download it again")
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**32:
        return "safetensors"
    if start.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    if path.suffix == ".onnx" or _is_onnx(start):
        raise InvalidInput(f"{path} is {FOLDED}")
    if start[0] == 0x80 and start[1] in range(2, 6):
        return "pickle"
    found = next((words for beginning, words in _BEGINNINGS.items() if start.startswith(beginning)), None)
    if start[4:8] == b"TFL3":
        found = f"a TFLite file, from which BatchNorm is gone: {_TAKEN}"
    if start[257:262] == b"ustar":
        found = "a tar archive: unpack it first"
    raise InvalidInput(f"{path} is {found or f'no file of weights that is known here: {_TAKEN}'}")


def _kind_of_zip(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InvalidInput(
            f"{path} was cut short or damaged, its index cannot be read ({error}): copy or download it again"
        ) from None
    # All that torch writes lies in one folder of the archive.
    inside = {name.partition("/")[2] for name in names}
    if any(name.startswith("code/") for name in inside) or "constants.pkl" in inside:
        raise InvalidInput(f"{path} is {_SCRIPT}")
    flat = inside | set(names)
    if flat & {"archive_format", "serialized_exported_program.json"} or any(n.startswith("models/") for n in inside):
        raise InvalidInput(f"{path} is {_EXPORTED}")
    if "data.pkl" in inside:
        return "pickle"
    raise InvalidInput(
        f"{path} is a zip archive without weights of torch ({', '.join(names[:3]) or 'empty'}): {_TAKEN}"
    )


def _is_onnx(start: bytes) -> bool:
    """Tell whether a protobuf begins with ONNX's `ir_version` and a field that comes next there."""
    return len(start) > 2 and start[0] == 0x08 and 0 < start[1] < 32 and start[2] in (0x12, 0x1A, 0x22, 0x3A, 0x42)
