"""Names that other libraries have for the tensors of networks that timm has too, and how to get from these to timm's.

A naming says which networks of timm compute the same as the library's; the tests show that with equal outputs. Nothing
here changes a value: a tensor gets another name, and a fully connected layer that timm has as a convolution its shape.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Rename = Callable[[Collection[str], Collection[str]], dict[str, str]]
"""Makes, of the modules that a file has tensors of and those that the network has, the file's names → the network's."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Renames by patterns, each for whole names; the first that fits counts, and a name that none fits stays."""

    patterns: tuple[tuple[str, str], ...]

    def __call__(self, modules: Collection[str], wanted: Collection[str]) -> dict[str, str]:
        return {module: self._renamed(module) for module in modules}

    def _renamed(self, module: str) -> str:
        for pattern, replacement in self.patterns:
            if match := re.fullmatch(pattern, module):
                return match.expand(replacement)
        return module


@dataclass(frozen=True, slots=True)
class Blocks:
    """Renames for chains of blocks, which are counted through in one library and by stage and place in timm.

    Args:
        block: a pattern of two groups: a block, and a part of it.
        forms: for each set of parts that a block may have, timm's names of them.
        around: names outside of blocks; `{last}` stands for the highest number in the first place after `features.`,
            `{next}` for timm's block after those of the file.
    """

    block: str
    forms: tuple[Mapping[str, str], ...]
    around: Mapping[str, str]

    def __call__(self, modules: Collection[str], wanted: Collection[str]) -> dict[str, str]:
        theirs: dict[str, dict[str, str]] = {}
        for module in modules:
            if match := re.fullmatch(self.block, module):
                theirs.setdefault(match[1], {})[match[2]] = module
        ours = sorted({match[0] for name in wanted if (match := re.match(r"blocks\.\d+\.\d+", name))}, key=_numbers)
        forms = {frozenset(form): form for form in self.forms}
        named: dict[str, str] = {}
        for theirs_block, our_block in zip(sorted(theirs, key=_numbers), ours, strict=False):
            parts = theirs[theirs_block]
            form = forms.get(frozenset(parts), {})
            named |= {module: f"{our_block}.{form[part]}" for part, module in parts.items() if part in form}
        last = max((_numbers(module)[0] for module in modules if module.startswith("features.")), default=0)
        after = ours[len(theirs)] if len(ours) > len(theirs) else ""
        for theirs_name, our_name in self.around.items():
            named[theirs_name.format(last=last)] = our_name.format(next=after)
        return {module: named.get(module, module) for module in modules}


@dataclass(frozen=True, slots=True)
class Twin:
    """A network of timm that computes the same."""

    architecture: str
    model_args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """A library's names for a family of networks."""

    library: str
    family: str
    marks: frozenset[str]
    """Modules that together tell it from all others."""
    twins: Mapping[str, Twin]
    """The twin of each network that the library has a name for."""
    unnamed: tuple[Twin, ...] = ()
    """Twins of networks that the library makes by arguments alone."""
    rename: Rename = Rules(())
    as_convolutions: frozenset[str] = frozenset()
    """Convolutions of timm that are fully connected layers in the library."""
    largest_image: int | None = None
    """Side of the largest images, in pixels, for which the two compute the same."""
    pads_as_built: bool = False
    """True where the library pads maps as the image size needs that a network was built for, whatever it is given."""

    def twin_named(self, architecture: str) -> Twin | None:
        """The twin of that name in timm."""
        return next((twin for twin in self.all_twins() if twin.architecture == architecture), None)

    def all_twins(self) -> list[Twin]:
        return [*self.twins.values(), *self.unnamed]

    def translate(self, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors under timm's names, in timm's shapes.

        Args:
            tensors: under the library's names.
            wanted: the `state_dict()` of a twin, on any device, for any number of classes.
        """
        renamed = self.rename(modules_of(tensors), modules_of(wanted))
        result: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            module, _, kind = name.rpartition(".")
            ours = f"{renamed[module]}.{kind}" if module else name
            if kind == "weight" and renamed.get(module) in self.as_convolutions and ours in wanted:
                tensor = _as_convolution(tensor, wanted[ours])
            result[ours] = tensor
        return result


def modules_of(names: Iterable[str]) -> dict[str, None]:
    """The modules whose tensors these are, in order."""
    return dict.fromkeys(name.rpartition(".")[0] for name in names if "." in name)


def recognise(names: Iterable[str], namings: Iterable[Naming]) -> Naming | None:
    """The naming whose marks are all there."""
    modules = modules_of(names).keys()
    return next((naming for naming in namings if naming.marks and naming.marks <= modules), None)


def _as_convolution(tensor: Tensor, wanted: Tensor) -> Tensor:
    same = tensor.dim() == 2 and tensor.numel() == wanted.numel() and tensor.shape[0] == wanted.shape[0]
    return tensor.reshape(wanted.shape) if same else tensor


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", name))
