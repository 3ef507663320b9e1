"""timm's notation of RandAugment, AugMix and AutoAugment, checked where timm is not installed.

It is `timm.data.auto_augment`'s, but for what timm passes over in silence (a section without its number, an unknown
set of transforms) or fails at once the first image is augmented.
"""

import re

_WHOLE = r"\d{1,3}"
_POSITIVE = r"[1-9]\d{0,2}"
_REAL = r"\d{1,3}(\.\d*)?"
_PART = r"(0(\.\d*)?|1(\.0*)?)"
_ALPHA = r"(0\.[1-9]\d*|[1-9]\d{0,2}(\.\d*)?)"
"""A Beta distribution's parameter, at least 0.1 [our choice]: below, weights underflow to 0, by which timm divides."""

_MAX_WEIGHTED_TRANSFORMS = 14
"""Weighted sets have so many transforms, and are drawn from without replacement."""

_RAND = {
    "m": _WHOLE,
    "n": _POSITIVE,
    "p": _PART,
    "mstd": _REAL,
    "mmax": _WHOLE,
    "inc": "[01]",
    "t": "(weights|3aw|3a)",
}
_AUGMIX = {"m": _WHOLE, "w": _POSITIVE, "d": _WHOLE, "a": _ALPHA, "b": "[01]", "mstd": _REAL}
_AUTO = {"mstd": _REAL}
_POLICIES = {
    "rand": _RAND,
    "augmix": _AUGMIX,
    "original": _AUTO,
    "originalr": _AUTO,
    "v0": _AUTO,
    "v0r": _AUTO,
    "3a": _AUTO,
}


def check_auto_augment(notation: str) -> str:
    """The notation, as it came: `rand-m9-mstd0.5-inc1`, `augmix-m5-w4`, `original-mstd0.5` and the like.

    Raises:
        ValueError: naming the part that is not timm's.
    """
    policy, *sections = notation.split("-")
    if policy not in _POLICIES:
        raise ValueError(f"unknown policy {policy!r:.80}; there are {', '.join(_POLICIES)}, or null for none")
    known = _POLICIES[policy]
    values: dict[str, str] = {}
    for section in sections:
        fitting = [name for name, value in known.items() if re.fullmatch(name + value, section, re.ASCII)]
        if not fitting:
            raise ValueError(
                f"{section!r:.80} is no section of {policy}, or its value is out of range; there are "
                f"{', '.join(known)}, each with its value (m9, mstd0.5)"
            )
        (name,) = fitting
        values[name] = section.removeprefix(name)
    if values.get("t") in ("weights", "3aw") and int(values.get("n", 2)) > _MAX_WEIGHTED_TRANSFORMS:
        raise ValueError(
            f"n{values['n']}, but of t{values['t']} {_MAX_WEIGHTED_TRANSFORMS} transforms at most are drawn"
        )
    return notation
