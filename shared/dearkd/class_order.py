"""Whether two lists of class names, in the order of their labels, mean the same labels."""

import re
from collections.abc import Iterable, Sequence

_DIGITS = re.compile(r"(\d+)")


def other_order(theirs: Sequence[str] | None, ours: Sequence[str] | None) -> str | None:
    """Where two orders of the same class names part: label 2 here is then another class there, in silence.

    Folders named 0 to 11 are a usual case: sorted as text, the third of them is 10.

    Returns:
        The first label that differs, with both names. None where they agree, where one has no names, and where they
        name other things (0 to 9 and zero to nine), of which nothing can be said.
    """
    if theirs is None or ours is None or sorted(theirs) != sorted(ours):
        return None
    return next(
        (
            f"label {label} is {name!r} there and {wanted!r} here"
            for label, (name, wanted) in enumerate(zip(theirs, ours, strict=True))
            if name != wanted
        ),
        None,
    )


def natural_order(names: Iterable[str]) -> list[str]:
    """Class names as timm sorts folders: digits as numbers, all else in lower case (2 before 10, a before B)."""
    return sorted(sorted(names), key=_natural_key)


def parted_orders(names: Iterable[str]) -> tuple[list[str], list[str], str] | None:
    """The two usual orders of class folders, where they part: torchvision's by name, and timm's natural one.

    Returns:
        The order by name, the natural order, and the first label that differs, in words. None where they agree: then
        whoever trained the teacher has had the same labels.
    """
    by_name = sorted(names)
    natural = natural_order(by_name)
    for label, (first, second) in enumerate(zip(by_name, natural, strict=True)):
        if first != second:
            return by_name, natural, f"label {label} is {first!r} by name, but {second!r} in natural order"
    return None


def _natural_key(name: str) -> list[str | int]:
    # Text and digits take turns, so that no number is ever compared with text.
    parts = _DIGITS.split(name.lower())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]
