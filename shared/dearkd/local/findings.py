"""Findings of `dearkd doctor`."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """`remark`: worth knowing, but everything works. `problem`: something needed is missing."""

    subject: str
    state: Literal["ok", "remark", "problem"]
    detail: str
    remedy: str = ""
