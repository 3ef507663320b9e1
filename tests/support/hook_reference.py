"""The distance of BatchNorm statistics by plain forward hooks."""

import torch
from torch import Tensor, nn


def hook_reference(model: nn.Module, x: Tensor, weights: list[float]) -> tuple[Tensor, Tensor]:
    """The logits, and Σ w_l (‖μ_l − μ̂_l‖ + ‖σ²_l − σ̂²_l‖), from hooks on an untouched model: slow, by the formula."""
    terms: list[Tensor] = []
    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm)]

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        values = inputs[0].transpose(0, 1).flatten(1)
        mean = values.sum(dim=1) / values.shape[1]
        variance = ((values - mean[:, None]) ** 2).sum(dim=1) / values.shape[1]
        distance = ((mean - layer.running_mean) ** 2).sum().sqrt() + ((variance - layer.running_var) ** 2).sum().sqrt()
        terms.append(weights[layers.index(layer)] * distance)

    handles = [layer.register_forward_hook(hook) for layer in layers]
    logits = model(x)
    for handle in handles:
        handle.remove()
    assert len(terms) == len(layers)
    return logits, torch.stack(terms).sum()
