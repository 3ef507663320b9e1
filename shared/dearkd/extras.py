"""Modules that are not installed, and the extra of the package that installs them (`pip install 'dearkd[api]'`)."""

import re
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec
from typing import Final

from dearkd.errors import DearKDError

IMPORTED_AS: Final = {"scikit-learn": "sklearn", "pillow": "PIL", "ray": "ray"}
"""Distributions whose module has another name than theirs, with `_` for `-`."""

_REQUIREMENT: Final = re.compile(r"([\w.-]+)\s*(?:\[([^]]*)\])?[^;]*(?:;(.*))?")
_EXTRA: Final = re.compile(r"""extra\s*==\s*['"]([\w-]+)['"]""")


@cache
def _requirements() -> dict[str, tuple[set[str], set[str]]]:
    """For each extra, the modules that it brings itself and the other extras that it includes; "" is the core."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    try:
        stated = requires("dearkd") or []
    except PackageNotFoundError:  # run from its sources, without being installed
        return found
    for text in stated:
        match = _REQUIREMENT.match(text)
        if match is None:
            continue
        name = match[1].lower().replace("_", "-")
        extra = _EXTRA.search(match[3] or "")
        modules, others = found.setdefault(extra[1] if extra else "", (set(), set()))
        if name == "dearkd":
            others.update(word.strip() for word in (match[2] or "").split(","))
        else:
            modules.add(IMPORTED_AS.get(name, name.replace("-", "_")))
    return found


def modules_of(extra: str) -> set[str]:
    """All modules at the top that an extra brings, by way of others too."""
    modules, others = _requirements().get(extra, (set(), set()))
    return modules.union(*(modules_of(other) for other in others))


def require_extras(extras: Iterable[str], what: str) -> None:
    """Raises `DearKDError` (`not_installed`) if a package of these extras is missing, naming what to install."""
    missing = {extra: sorted(name for name in modules_of(extra) if not _is_there(name)) for extra in extras}
    lacking = [extra for extra, names in missing.items() if names]
    if lacking:
        names = sorted({name for extra in lacking for name in missing[extra]})
        raise DearKDError(_remedy(what, ", ".join(names), lacking), code="not_installed")


def import_error(error: ImportError, what: str, preferred: Iterable[str] = ()) -> DearKDError:
    """The same error with its remedy. Of several extras that bring the package, the first of `preferred` is named."""
    module = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError):
        return DearKDError(
            f"{what} needs the package {module or 'that'}, which is here but cannot be imported ({error}): install it "
            "anew (`dearkd doctor` says more)",
            code="broken_package",
        )
    if module in modules_of(""):
        return DearKDError(_remedy(what, module, []), code="not_installed")
    # The narrowest first.
    bringing = [extra for extra in _requirements() if module in modules_of(extra)]
    bringing.sort(key=lambda extra: (extra not in preferred, len(modules_of(extra))))
    return DearKDError(_remedy(what, module or str(error), bringing[:1] or ["all"]), code="not_installed")


def _remedy(what: str, names: str, extras: list[str]) -> str:
    package = f"dearkd[{','.join(extras)}]" if extras else "dearkd"
    return f"{what} needs what is not installed here ({names}): pip install '{package}'"


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False
