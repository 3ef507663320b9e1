"""Weights in safetensors: what a file's header says, whether that fits a network, and a state that can be written."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from torch import Tensor, nn

from dearkd.errors import InvalidInput

MAX_TENSORS = 10_000
"""Most tensors of one file. The CNN of timm with most has fewer than 3,000 [our choice]."""

REMEDY = (
    "save the teacher with dearkd.vision.teachers.save_teacher, or its state_dict() with safetensors.torch.save_file"
)

_FLOATS = ("F16", "BF16", "F32", "F64")
_INTEGERS = ("I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64")
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A header's entry; `kind` is safetensors' name of the type, such as `F32`."""

    shape: tuple[int, ...]
    kind: str

    @property
    def elements(self) -> int:
        product = 1
        for side in self.shape:
            product *= side
        return product


def separate_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's `state_dict()` as safetensors takes it: on the CPU, contiguous, no two tensors of one memory.

    `save_file` refuses the tensors of a model in channels_last, and weights that are tied.
    """
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }


def read_header(weights: Path) -> dict[str, StoredTensor]:
    """Name, shape and type of every tensor, without reading any.

    Raises:
        InvalidInput: at `/weights`, if it is no safetensors file or holds more than MAX_TENSORS tensors.
    """
    try:
        with safetensors.safe_open(weights, framework="pt") as file:
            names = list(file.keys())
            if len(names) > MAX_TENSORS:
                raise InvalidInput.at(
                    "/weights", f"{len(names)} tensors in one file, at most {MAX_TENSORS} are allowed; no CNN has more"
                )
            entries = {name: file.get_slice(name) for name in names}
            return {
                name: StoredTensor(tuple(entry.get_shape()), str(entry.get_dtype())) for name, entry in entries.items()
            }
    except (safetensors.SafetensorError, ValueError, OverflowError) as error:  # Unicode errors are ValueErrors
        raise InvalidInput.at("/weights", f"not a safetensors file ({error}): {REMEDY}") from error


def require_fit(network: str, wanted: Mapping[str, Tensor], stored: Mapping[str, StoredTensor]) -> None:
    """Check that a file holds exactly a network's tensors, in types that mean the same there.

    Floating-point tensors may be stored in 16, 32 or 64 bits. `num_batches_tracked` may be missing, as for torch: no
    answer depends on it.

    Args:
        network: what it is called in errors.
        wanted: its `state_dict()`, on any device.
        stored: the file's header.

    Raises:
        InvalidInput: at `/weights`, naming the tensors that are missing, unexpected, of another shape or of a type that
            is not taken.
    """
    found = listed_misfits(misfits(wanted, stored))
    if found:
        raise InvalidInput.at("/weights", f"they do not fit {network}; {found}")
    found = listed_misfits(
        {
            "of a type that is not taken": [
                f"{name} is {_torch_name(stored[name].kind)}"
                for name, tensor in wanted.items()
                if name in stored and stored[name].kind not in _kinds(name, tensor)
            ]
        }
    )
    if found:
        raise InvalidInput.at(
            "/weights",
            f"{found}; weights that were quantised mean nothing without their scales: save them as float32, float16, "
            "bfloat16 or float64",
        )


def misfits(wanted: Mapping[str, Tensor], stored: Mapping[str, StoredTensor | Tensor]) -> dict[str, list[str]]:
    """The tensors that are missing, unexpected and of another shape, each under that word."""
    return {
        "missing": [name for name in wanted if name not in stored and not is_counter(name)],
        "unexpected": [name for name in stored if name not in wanted],
        "of another shape": [
            f"{name} is {tuple(stored[name].shape)}, not {tuple(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in stored and tuple(stored[name].shape) != tuple(tensor.shape)
        ],
    }


def listed_misfits(misfits: Mapping[str, list[str]], most: int = 5) -> str:
    """The first of each kind, and how many more there are; empty where all fits."""
    return "; ".join(
        f"{kind}: {', '.join(names[:most])}" + f" and {len(names) - most} more" * (len(names) > most)
        for kind, names in misfits.items()
        if names
    )


def is_counter(name: str) -> bool:
    """Tell whether a tensor only counts the batches that a BatchNorm layer has seen in training."""
    return name.rpartition(".")[2] == _COUNTER


def _kinds(name: str, tensor: Tensor) -> tuple[str, ...]:
    """The types in which a network's tensor may be stored."""
    if is_counter(name):  # nothing reads it, and who casts a whole state to half precision casts it too
        return _INTEGERS + _FLOATS
    if tensor.is_floating_point():
        return _FLOATS
    return ("BOOL",) if tensor.dtype == torch.bool else _INTEGERS


def _torch_name(kind: str) -> str:
    """Torch's name of a type: `BF16` is bfloat16, `F8_E4M3` float8_e4m3."""
    letters = kind.rstrip("0123456789") if "_" not in kind else kind.partition("8")[0]
    long = {"F": "float", "BF": "bfloat", "I": "int", "U": "uint", "C": "complex"}.get(letters)
    return kind.lower() if long is None else long + kind.removeprefix(letters).lower()
