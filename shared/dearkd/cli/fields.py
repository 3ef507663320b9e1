"""Values of specs, given as text on the command line or in a JSON file."""

import json
import math
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import typer

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
PASSES = "-passes"
MULTIPLES = {"k": 10**3, "M": 10**6, "G": 10**9}


def parse_numbers(given: Iterable[str], option: str) -> list[float]:
    """Numbers from `0.5`, from `0.48,0.46,0.41`, or from an option that was given several times."""
    words = [word.strip() for text in given for word in text.split(",")]
    try:
        return [float(word) for word in words]
    except ValueError:
        raise typer.BadParameter(
            f"{','.join(words)!r} is no list of numbers; give one a channel, such as 0.48,0.46,0.41", param_hint=option
        ) from None


def parse_time(text: str, option: str) -> float:
    """Seconds of `90`, `90s`, `30m`, `2h` or `1.5d`.

    Raises:
        typer.BadParameter: if it is none of these, or not above zero.
    """
    number, unit = (text[:-1], text[-1]) if text[-1:] in UNITS else (text, "s")
    seconds = _number(number) * UNITS[unit]
    if not 0 < seconds < math.inf:
        raise typer.BadParameter(f"{text!r} is no time: write 90s, 30m, 2h or 1d", param_hint=option)
    return seconds


def parse_budget(text: str, option: str) -> dict[str, Any]:
    """The `budget` of a synthesis job: `30m` and other times, or `2M-passes`, `500k-passes`, `2000000-passes`.

    Raises:
        typer.BadParameter: if it is neither.
    """
    if not text.endswith(PASSES):
        if text[-1:] in UNITS and 0 < _number(text[:-1]) < math.inf:
            return {"minutes": parse_time(text, option) / 60}
        raise typer.BadParameter(
            f"{text!r} is no budget: write a time (90s, 30m, 2h) or teacher passes (500k-passes, 2M-passes)",
            param_hint=option,
        )
    number = text.removesuffix(PASSES)
    factor = MULTIPLES.get(number[-1:], 1)
    passes = _exactly(number[:-1] if factor > 1 else number) * factor
    if not (passes >= 1 and passes == int(passes)):
        raise typer.BadParameter(
            f"{text!r} is no whole number of teacher passes: write 500k-passes or 2M-passes", param_hint=option
        )
    return {"teacher_passes": int(passes)}


def _number(text: str) -> float:
    """The number that a text is; NaN of any other."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _exactly(text: str) -> Decimal:
    """The number that a text is, in decimal: 2.01 thousand are 2010, not a little less. 0 of others, or too large."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        return Decimal(0)
    return number if number.is_finite() and number < 2**63 else Decimal(0)


def parse_assignments(given: Iterable[str], option: str) -> dict[str, Any]:
    """Nested fields from `key=value` and `key.sub=value`; a value is JSON where it can be, else text."""
    fields: dict[str, Any] = {}
    for text in given:
        path, equals, value = text.partition("=")
        keys = path.split(".")
        if not equals or not all(keys):
            raise typer.BadParameter(
                f"{text!r} is no assignment; write KEY=VALUE, or KEY.SUB=VALUE for a field of an object",
                param_hint=option,
            )
        target = fields
        for key in keys[:-1]:
            target = target.setdefault(key, {})
            if not isinstance(target, dict):
                raise typer.BadParameter(f"{text!r} sets a field of what is set to a plain value", param_hint=option)
        target[keys[-1]] = _value(value)
    return fields


def read_spec(path: Path | None) -> dict[str, Any]:
    """The JSON object in a file; an empty one without a file."""
    if path is None:
        return {}
    try:
        value = _parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise typer.BadParameter(f"{path} holds no JSON: {error}", param_hint="--spec") from None
    if not isinstance(value, dict):
        raise typer.BadParameter(f"{path} holds a JSON {type(value).__name__}, not an object", param_hint="--spec")
    return value


def _value(text: str) -> Any:
    try:
        return _parse(text)
    except ValueError:
        return text


def _parse(text: str) -> Any:
    """Strict JSON: NaN and Infinity, which Python would read, are none."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)
