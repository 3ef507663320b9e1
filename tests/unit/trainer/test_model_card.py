"""The model card as Hugging Face's own classes read it, with whatever name a model has."""

import re
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData

from dearkd_trainer.record.card import for_hub, plain_card, run_card, with_licence

SPEC: dict[str, Any] = {"optimizer": {"model_ema_half_life": None}, "seed": 3}
NAMES = ["bars", "no", "1e3", "- a: b # c", "---", 'x`](y) <img src=z> "|', "ни́ć 🦆", "a" * 300]


def read(text: str) -> ModelCardData:
    """The header as Hugging Face's class holds it, which raises on results that the Hub refuses."""
    data = ModelCard(text, ignore_metadata_errors=False).data
    assert isinstance(data, ModelCardData)
    return data


def written(name: str = "bars", **changes: Any) -> str:
    arguments: dict[str, Any] = {
        "kind": "vision transformer",
        "architecture": "dearkd_micro_patch8_32",
        "image_size": 32,
        "in_chans": 1,
        "num_classes": 3,
        "data": "60 synthetic images",
        "teacher": "tch-1",
        "accuracy": {"top-1": 0.5, "top-5": 1.0},
        "evaluated_on": "ds-1",
        "metrics": {"loss": 0.25},
    }
    return run_card(name, SPEC, **(arguments | changes))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("measured", [True, False])
def test_hugging_faces_classes_take_it_and_write_the_same(name: str, measured: bool) -> None:
    text = written(name, **({} if measured else {"accuracy": {}, "evaluated_on": None}))
    data = read(text)
    assert (data.license, data.library_name, data.pipeline_tag) == ("unknown", "timm", "image-classification")
    results = data.eval_results or []
    assert [(one.metric_name, one.metric_value) for one in results] == (
        [("top-1", 0.5), ("top-5", 1.0)] if measured else []
    )
    assert data.model_name == (name if measured else None)
    for one in results:
        # The Hub's own rules for `model-index`: each of these is there, and is no empty text.
        assert all((one.task_type, one.dataset_type, one.dataset_name, one.metric_type))
    assert read(f"---\n{data.to_yaml()}\n---\n").to_dict() == data.to_dict()
    for changed in (for_hub(text), with_licence(text, "mit"), for_hub(with_licence(text, "mit"))):
        assert [one.metric_value for one in read(changed).eval_results or []] == [one.metric_value for one in results]


def test_a_card_without_a_run_is_one_too() -> None:
    config = {"architecture": "a", "num_classes": 3, "pretrained_cfg": {"input_size": [1, 32, 32]}}
    text = plain_card("x", "vision transformer", config, accuracy={"top-1": 0.5}, evaluated_on="ds-1")
    assert [one.metric_value for one in read(text).eval_results or []] == [0.5]


def test_the_picture_is_beside_it_and_stays_in_every_form() -> None:
    assert "](" not in written()
    text = written(samples="samples.png")
    for form in (text, for_hub(text), with_licence(text, "mit")):
        assert re.findall(r"!\[[^]]+\]\(([^)]+)\)", form) == ["samples.png"]
