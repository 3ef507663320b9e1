"""Weights out of files of torch and of safetensors, unwrapped as far as the file alone says how.

A pickle is read by torch's unpickler of weights, which calls nothing but torch's own constructors of tensors. What
trainers keep beside weights (arguments, numbers of numpy, paths) becomes an empty stand-in; others are refused.
"""

import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dearkd.errors import InvalidInput, reason
from dearkd.teacher_files.file_kinds import STATE_DICT, Kind
from dearkd.vision.weight_files import read_header

AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
"""Names under which trainers keep the running average of a network, the one they evaluate with; timm takes it too."""
PLAIN = ("state_dict", "model", "model_state_dict", "model_state", "net", "network", "weights")

MAX_STANDINS = 100
_DEPTH = 3
_GLOBAL = re.compile(r"GLOBAL (\S+)")
_BESIDE = ("argparse", "types", "numpy", "pathlib", "datetime", "omegaconf", "torch.torch_version", "torch.optim")
"""Modules whose objects trainers keep beside weights."""
_TYPES = ("list", "dict", "int", "float", "str", "bool", "tuple")
"""Builtins that a defaultdict names; torch's errors write them without their module."""
_DICTIONARIES = (
    *("collections.defaultdict", "lightning.fabric.utilities.data.AttributeDict"),
    *("lightning_fabric.utilities.data.AttributeDict", "pytorch_lightning.utilities.parsing.AttributeDict"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A network's tensors under the names that a file has for them."""

    tensors: Mapping[str, Tensor]
    modules: frozenset[str] = frozenset()
    """Names of the network's modules, also of those without tensors, where the file kept them: `state_dict()` notes
    them, and `torch.save` stores that."""
    remarks: tuple[str, ...] = ()
    """Sentences about what was taken and left."""

    def inside(self, prefix: str) -> "Weights":
        """The tensors and modules under a prefix, without it."""
        start = f"{prefix}."
        return Weights(
            tensors={name.removeprefix(start): t for name, t in self.tensors.items() if name.startswith(start)},
            modules=frozenset(
                "" if name == prefix else name[len(start) :]
                for name in self.modules
                if name == prefix or name.startswith(start)
            ),
            remarks=self.remarks,
        )

    def saying(self, *remarks: str) -> "Weights":
        """The same with more remarks."""
        return replace(self, remarks=(*self.remarks, *remarks))


class _Remark:
    """Stands for an object that is no weight: takes all that it was made of, and keeps nothing."""

    def __new__(cls, *_: Any) -> "_Remark":
        return object.__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class _Dictionary:
    """Stands for a kind of dict."""

    def __new__(cls, *_: Any) -> Any:
        return {}


def read_weights(path: Path, kind: Kind, chosen: str | None = None) -> Weights:
    """The weights in a file.

    Args:
        path: a file of that kind.
        kind: as `file_kinds.kind_of` says.
        chosen: the key of the state dict to take where a file holds several, with dots for keys in keys.

    Raises:
        InvalidInput: if it is cut short, holds pickled objects that are not weights, no weights, or several networks
            of which none was chosen.
    """
    if kind == "safetensors":
        read_header(path)
        try:
            value: Any = load_file(path)
        except Exception as error:  # safetensors' own, or the system's
            raise InvalidInput(f"{path} cannot be read ({reason(error)}): copy or download it again") from error
    else:
        value = _unpickled(path)
    return _chosen(value, chosen, path)


def _unpickled(path: Path) -> Any:
    standins: dict[str, Any] = {}
    while True:
        try:
            with torch.serialization.safe_globals([(standin, name) for name, standin in standins.items()]):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except pickle.UnpicklingError as error:
            found = _GLOBAL.search(str(error))
            if found is None:
                raise InvalidInput(_unreadable(path, error)) from error
            name = f"builtins.{found[1]}" if found[1] in _TYPES else found[1]
            standin = _standin(name)
            if standin is None or name in standins or len(standins) == MAX_STANDINS:
                raise InvalidInput(
                    f"{path} holds more than weights: a pickled {name:.200}, and loading that would run code. None "
                    f"of it was run; write the weights alone, where you trust the file: {STATE_DICT}",
                    code="pickled_code",
                ) from None
            standins[name] = standin
        except UnicodeEncodeError:  # torch takes no path that is no text
            raise
        except Exception as error:  # RuntimeError, EOFError, … of a damaged file: which, torch does not say
            raise InvalidInput(_unreadable(path, error)) from error


def _standin(name: str) -> Any:
    if name in _DICTIONARIES:
        return _Dictionary
    beside = (*(f"{module}." for module in _BESIDE), *(f"builtins.{kind}" for kind in _TYPES))
    return _Remark if name.startswith(beside) else None


def _unreadable(path: Path, error: Exception) -> str:
    words = reason(error).partition("WeightsUnpickler error:")  # after two paragraphs of advice that runs code
    first = (words[2] or words[0]).strip().splitlines()[0]
    return (
        f"{path} cannot be read as torch.save writes weights, it was cut short or damaged ({first:.150}): {STATE_DICT}"
    )


def _chosen(value: Any, chosen: str | None, path: Path) -> Weights:
    found = dict(_state_dicts(value)) if isinstance(value, Mapping) else {}
    if not found:
        raise InvalidInput(f"{path} holds no weights: {_described(value)}. Write them: {STATE_DICT}", code="no_weights")
    if chosen is not None:
        return _at(chosen, found, path)
    if len(found) == 1:
        ((key, state),) = found.items()
        return _taken(state, (f"took the weights under {key!r}",) if key else ())
    known = [key for key in (*AVERAGES, *PLAIN) if key in found]
    if len(known) == len(found) and len(set(known) & set(PLAIN)) < 2:
        first, *others = known
        what = ", the running average" if first in AVERAGES else ""
        return _taken(
            found[first],
            (f"took the weights under {first!r}{what} (--state-dict {others[0]} takes those under {others[0]!r})",),
        )
    raise InvalidInput(
        f"{path} holds {len(found)} state dicts, {listed(found)}: choose with --state-dict, as in --state-dict "
        f"{next(iter(found))}",
        code="several_networks",
    )


def _at(chosen: str, found: Mapping[str, Mapping[Any, Any]], path: Path) -> Weights:
    if chosen in found:
        return _taken(found[chosen], (f"took the weights under {chosen!r}",))
    for key, state in found.items():
        start = chosen.removeprefix(f"{key}.") if len(found) == 1 or chosen.startswith(f"{key}.") else None
        if start is not None and any(isinstance(name, str) and name.startswith(f"{start}.") for name in state):
            whole = _taken(state).inside(start)
            return replace(whole, remarks=(f"took the {len(whole.tensors)} tensors under {chosen!r}",))
    raise InvalidInput(f"--state-dict {chosen}: {path} holds no weights there; it has {listed(found)}")


def _taken(state: Mapping[Any, Any], remarks: tuple[str, ...] = ()) -> Weights:
    tensors = {str(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    others = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        remarks = (*remarks, f"left out what is no tensor: {listed(others)}")
    noted = getattr(state, "_metadata", None)
    modules = frozenset(map(str, noted)) if isinstance(noted, Mapping) else frozenset[str]()
    return Weights(tensors=tensors, modules=modules, remarks=remarks)


def _state_dicts(
    value: Mapping[Any, Any], path: str = "", depth: int = _DEPTH
) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """State dicts of networks, by the keys that lead to them: an optimiser's has no tensor called `….weight`."""
    if any(isinstance(name, str) and name.endswith("weight") and isinstance(t, Tensor) for name, t in value.items()):
        yield path, value
        return
    for key, inner in value.items():
        if isinstance(key, str) and isinstance(inner, Mapping) and depth > 0:
            yield from _state_dicts(inner, f"{path}.{key}" if path else key, depth - 1)


def _described(value: Any) -> str:
    if not isinstance(value, Mapping):
        return f"it is a {type(value).__name__}"
    keys = [str(key) for key in value]
    nested = {str(key) for inner in value.values() if isinstance(inner, Mapping) for key in inner}
    optimiser = {"state", "param_groups"} <= (set(keys) | nested)
    return f"it has {listed(keys) or 'nothing'}" + (", the state of an optimiser" if optimiser else "")


def listed(names: Iterable[str]) -> str:
    """The first five, and how many more there are."""
    shown = [repr(name)[:80] for name in names]
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
