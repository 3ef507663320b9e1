"""Calibration: how far a classifier's confidence is from how often it is right."""

import torch
from torch import Tensor


def expected_calibration_error(confidences: Tensor, correct: Tensor, bins: int = 15) -> float:
    """The mean gap between confidence and accuracy (Guo et al., ICML 2017, equation 3).

    Over bins of equal width of the top class's probability, `((b-1)/bins, b/bins]`: the gap between mean confidence and
    accuracy in each, weighed by the share of samples that fall into it.

    Args:
        confidences: (N,) in [0, 1].
        correct: (N,) whether the top class was the label.
        bins: 15 in the paper.
    """
    confidences = confidences.double()
    places = (confidences * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64, device=confidences.device)
    gaps.index_add_(0, places, confidences - correct.double())
    return (gaps.abs().sum() / len(confidences)).item()
