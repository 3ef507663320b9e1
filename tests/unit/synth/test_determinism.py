"""Which of torch's settings hold while images are made, and that they are put back."""

from typing import Any

import pytest
import torch

from dearkd_synth.engine.determinism import reproducible, rounding


def settings() -> dict[str, Any]:
    deterministic: Any = torch.utils.deterministic
    return {
        "algorithms": torch.are_deterministic_algorithms_enabled(),
        "warns": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fills": deterministic.fill_uninitialized_memory,
        "cudnn": (torch.backends.cudnn.enabled, torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "tf32": torch.backends.cudnn.allow_tf32,
        "products": torch.get_float32_matmul_precision(),
    }


@pytest.mark.parametrize("tf32", [True, False])
def test_a_gpu_works_by_settings_of_our_own(tf32: bool) -> None:
    """The settings can be looked at without a GPU."""
    before = settings()
    torch.backends.cudnn.benchmark = True  # what a process may have set for itself
    try:
        with reproducible("cuda:1", tf32=tf32):
            assert settings() == {
                "algorithms": True,
                "warns": True,
                "fills": False,
                "cudnn": (True, True, False),
                "tf32": tf32,
                "products": "highest",
            }
        assert settings() == before | {"cudnn": (*before["cudnn"][:2], True)}
    finally:
        torch.backends.cudnn.benchmark = False
    assert settings() == before


def test_a_cpu_works_as_it_did() -> None:
    before = settings()
    with reproducible("cpu"):
        assert settings() == before


def test_a_gpus_rounding_is_recorded() -> None:
    assert rounding(torch.device("cuda", 0)) == {"tf32_convolutions": True}
    assert rounding(torch.device("cpu")) == {}
