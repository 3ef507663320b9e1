"""Checks that class names, in the order of their labels, match the labels of a teacher. No torch here."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

from dearkd.choices import ClassOrder

_DIGITS = re.compile(r"(\d+)")


def other_order(theirs: Sequence[str] | None, ours: Sequence[str] | None) -> str | None:
    """Find a class that has different labels in two lists of class names; training on them would silently go wrong.

    Folders named 0 to 11 are a usual case: sorted as text, the third of them is 10. So are labels that count from 1.
    Names are the same whatever their case, their form of Unicode, and whether they are parted by spaces, `_` or `-`.

    Returns:
        The first class that both name and that has other labels. None where there is none, where one has no names, and
        where they name other things (0 to 9 and zero to nine), of which nothing can be said.
    """
    if theirs is None or ours is None:
        return None
    form = _loose if len({*map(_loose, theirs)}) == len(theirs) and len({*map(_loose, ours)}) == len(ours) else _strict
    labels = {form(name): label for label, name in enumerate(ours)}
    for label, name in enumerate(theirs):
        wanted = labels.get(form(name), label)
        if wanted != label:
            there = f"label {label} is {name!r} there"
            return f"{there} and {ours[label]!r} here" if label < len(ours) else f"{there} and label {wanted} here"
    return None


def share_names(theirs: Sequence[str] | None, ours: Sequence[str] | None) -> bool:
    """Tell whether two lists share any name, so that `other_order` can compare their labels."""
    return bool({*map(_loose, theirs or ())} & {*map(_loose, ours or ())})


def is_counted(names: Sequence[str]) -> bool:
    """Tell whether each class's name is just its label, as for classes without names."""
    return list(names) == [str(label) for label in range(len(names))]


def count_remedy(theirs: Sequence[str] | None, ours: Sequence[str], *, whose: str = "the teacher") -> str:
    """Advice for a dataset (`ours`) with another number of classes than its teacher, as far as the names tell."""
    there = {*map(_loose, theirs or ())}
    strangers = [name for name in ours if _loose(name) not in there]
    if there and ours and not strangers:
        return f"all of them are {whose}'s: name all classes of {whose}, in its order"
    if len(strangers) < len(ours):
        return f"{strangers[0]!r} is none of {whose}'s: leave out what {whose} does not know"
    return f"both must have the same; where only some of {whose}'s have images, name all of them, in its order"


def uncertain_order(names: Sequence[str]) -> str | None:
    """Explain why these labels may differ from those of a teacher that has no class names.

    A teacher's labels usually follow its class folders: by name (torchvision) or in natural order (timm). Where the
    two agree nothing is uncertain, nor where each class is named by its own label, or the labels follow neither.

    Args:
        names: of all classes, in the order of their labels.

    Returns:
        The two orders, in words; None where the labels are certain.
    """
    if is_counted(names):
        return None
    parted = parted_orders(names)
    if parted is None:
        return None
    by_name, natural, where = parted
    if list(names) not in (by_name, natural):
        return None  # sorted by nobody: these labels follow a list, as the teacher's do
    return f"by name they are {_begin(by_name)}, in natural order {_begin(natural)}; {where}"


def sorted_by(order: ClassOrder, names: Sequence[str]) -> list[str]:
    """The names in an order; as they are where that is `given`.

    Raises:
        ValueError: if the order is by number and a name is none.
    """
    if order == "name":
        return sorted(names)
    if order == "natural":
        return natural_order(names)
    return sorted(names, key=int) if order == "number" else list(names)


def stored_name(name: str) -> str:
    """A class name as it is kept: composed, since macOS hands out folder names decomposed."""
    return unicodedata.normalize("NFC", name)


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


def _strict(name: str) -> str:
    return stored_name(name).strip()


def _loose(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", _strict(name)).casefold()


def _begin(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:4]) + (", …" if len(names) > 4 else "")
