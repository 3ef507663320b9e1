"""Whether two lists of class names, in the order of their labels, mean the same labels."""

from collections.abc import Sequence


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
