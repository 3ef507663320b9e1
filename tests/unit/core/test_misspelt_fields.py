"""Misspelt fields of specs: told which was meant, and no slower for a flood of them."""

from typing import Any

import pytest

from dearkd.errors import InvalidInput
from dearkd.specs import SynthesisRequest


@pytest.mark.parametrize(
    ("fields", "pointer", "meant"),
    [
        ({"sed": 1}, "/sed", "seed"),
        ({"image_per_class": 4}, "/image_per_class", "images_per_class"),
        ({"weights": {"boundry": 0.0}}, "/weights/boundry", "boundary"),
        ({"phases": [{"resolution": 16, "input_sise": 32, "iterations": 1}]}, "/phases/0/input_sise", "input_size"),
    ],
)
def test_a_misspelt_field_is_told_which_was_meant(fields: dict[str, Any], pointer: str, meant: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        SynthesisRequest.check({"teacher": "t"} | fields)
    details = {error.pointer: error.detail for error in refused.value.errors}
    assert details[pointer].endswith(f"did you mean {meant!r}?")


def test_a_field_that_resembles_none_and_the_many_of_a_flood_get_no_suggestion() -> None:
    with pytest.raises(InvalidInput) as refused:
        SynthesisRequest.check({"teacher": "t", "zzzzzz": 1})
    assert "did you mean" not in refused.value.message
    with pytest.raises(InvalidInput) as refused:
        SynthesisRequest.check({"teacher": "t"} | {f"seed_{number}": 1 for number in range(100)})
    assert len(refused.value.errors) == 100
    assert refused.value.message.count("did you mean 'seed'") == 5
