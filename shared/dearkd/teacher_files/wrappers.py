"""Prefixes that names have because the network was part of another module when it was saved."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from dearkd.errors import InvalidInput
from dearkd.teacher_files.checkpoints import Weights, listed

WRAPPERS = ("module", "model", "_orig_mod", "backbone", "timm_model", "net", "network", "student", "teacher")
"""Attributes in which DataParallel, Lightning, torch.compile, mmpretrain and transformers keep a network."""
HEADS = ("head", "cls_head")
"""Attributes beside `backbone` in which such a frame keeps the classifier."""
AVERAGED = "n_averaged"
"""A counter that AveragedModel keeps beside the network it wraps."""
_ROOMS = ("features", "layers", "blocks", "stages")
"""Networks themselves have these: where all names begin so, the classifier is missing and no wrapper is there."""


def unwrapped(weights: Weights) -> Iterator[Weights]:
    """The weights without wrappers; where only some names have one, the readings that this allows, best first."""
    while (prefix := _common(weights.tensors)) is not None:
        counted = ", left out 'n_averaged'" * (AVERAGED in weights.tensors)
        weights = weights.inside(prefix).saying(f"stripped {prefix!r} off all names{counted}")
    yield weights
    for prefix in WRAPPERS:
        within = [name for name in weights.tensors if name.startswith(f"{prefix}.")]
        if len(within) in (0, len(weights.tensors)):
            continue
        beside = [name for name in weights.tensors if not name.startswith(f"{prefix}.")]
        yield _stripped(weights, (prefix,))
        if any(name.startswith(f"{head}.") for name in beside for head in HEADS):
            yield _stripped(weights, (prefix, *HEADS))
        if statistics := [name for name in beside if name.endswith("running_mean")]:
            other = statistics[0].partition(".")[0]
            raise InvalidInput(
                f"it holds two networks, under {prefix!r} and {other!r}: choose with --state-dict {prefix} or "
                f"--state-dict {other}",
                code="several_networks",
            )
        yield from unwrapped(weights.inside(prefix).saying(f"took what is under {prefix!r}, left out {listed(beside)}"))


def _common(tensors: Mapping[str, Tensor]) -> str | None:
    """The first part of all names, where it is a wrapper's."""
    firsts = {name.partition(".")[0] for name in tensors if name != AVERAGED}
    if len(firsts) != 1:
        return None
    (first,) = firsts
    return first if first not in _ROOMS and any("." in name for name in tensors) else None


def _stripped(weights: Weights, prefixes: tuple[str, ...]) -> Weights:
    def named(name: str) -> str:
        first, _, rest = name.partition(".")
        return rest if first in prefixes and rest else name

    return Weights(
        tensors={named(name): tensor for name, tensor in weights.tensors.items()},
        modules=frozenset(),  # those of two modules, which tell nothing about the network as one
        remarks=(*weights.remarks, f"stripped {' and '.join(map(repr, prefixes))} off the names that have it"),
    )
