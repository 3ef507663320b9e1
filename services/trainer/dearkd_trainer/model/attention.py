"""Attention of a transformer: how far it looks, and where.

Mean attention distance: how far a transformer looks (Dosovitskiy et al., ICLR 2021, section 4.5 and figure 7).

For a head, the distance in the image between a query patch and a key patch, averaged over keys by attention weight, and
over queries and images. DearKD's own analysis: early layers attend locally after stage one, and stage two may undo it.
"""

from collections.abc import Iterable, Sequence
from typing import cast

import dearkd.vision  # noqa: F401  # makes timm importable

# isort: split
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dearkd_trainer.model.mhca import MHCA

MAX_IMAGES = 32
"""The most images in one forward."""
MAX_BYTES = 2**28
"""The largest weights of a layer that are held at once, num_heads · tokens² numbers an image; one image always is."""


def attention_distance(model: VisionTransformer, images: Tensor) -> list[float]:
    """Mean attention distance of each layer, in pixels of the model's input: the mean over its heads.

    Args:
        model: timm's ViT or a student; looked at in eval mode, and left in the mode it was in.
        images: (N, in_chans, img_size, img_size), normalised, on the model's device.
    """
    return layer_means(head_distances(model, images))


def layer_means(heads: Sequence[Sequence[float]]) -> list[float]:
    """The mean over the heads of each layer."""
    return [sum(layer) / len(layer) for layer in heads]


@torch.no_grad()
def head_distances(model: VisionTransformer, images: Tensor) -> list[list[float]]:
    """Mean attention distance of each head of each layer, in pixels.

    Only patches count: class and distillation tokens have no place in the image, so attention to them is left out and
    the rest is normalised again (our choice [R]; the paper does not say).
    """
    distances = patch_distances(model).to(images.device)
    sums: dict[int, Tensor] = {}
    hooks = [
        cast(nn.Module, block.attn).register_forward_pre_hook(
            _DistanceHook(index, sums, distances, model.num_prefix_tokens)
        )
        for index, block in enumerate(cast(Iterable[nn.Module], model.blocks))
    ]
    training = model.training
    model.eval()
    try:
        for chunk in images.split(images_at_once(model)):
            model(chunk)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return [(sums[index] / len(images)).tolist() for index in range(len(hooks))]


@torch.no_grad()
def attention_rollout(model: VisionTransformer, images: Tensor) -> Tensor:
    """The share of each patch in the class token's answer: attention rollout (Abnar & Zuidema, ACL 2020).

    The weights of each block, averaged over its heads, are mixed half and half with the identity, for the residual
    connection, and multiplied through all blocks. The last block's weights alone would point at tokens that have long
    taken in others; these lead back to patches, as in ViT's own pictures (Dosovitskiy et al., ICLR 2021, D.8).

    Args:
        model: timm's ViT or a student, whose first token is the class token; looked at in eval mode, and left in the
            mode it was in.
        images: (N, in_chans, img_size, img_size), normalised, on the model's device.

    Returns:
        (N, rows, columns), float32, on the CPU. The shares of an image sum to 1.
    """
    flow: list[Tensor] = []

    def follow(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        weights = attention_weights(module, inputs[0]).float().mean(1)
        weights = (weights + torch.eye(weights.shape[-1], device=weights.device)) / 2
        flow[:] = [weights @ flow[0] if flow else weights]

    blocks = cast(Iterable[nn.Module], model.blocks)
    hooks = [cast(nn.Module, block.attn).register_forward_pre_hook(follow) for block in blocks]
    training, maps = model.training, []
    model.eval()
    try:
        for chunk in images.split(images_at_once(model)):
            flow.clear()
            model(chunk)
            patches = flow[0][:, 0, model.num_prefix_tokens :]
            maps.append((patches / patches.sum(1, keepdim=True)).cpu())
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    rows, columns = model.patch_embed.grid_size
    return torch.cat(maps).view(len(images), rows, columns)


def images_at_once(model: VisionTransformer) -> int:
    """The number of images in one forward, by the size of their attention weights."""
    tokens = model.num_prefix_tokens + model.patch_embed.num_patches
    heads: int = model.blocks[0].attn.num_heads  # type: ignore[union-attr, assignment]  # the same in each block
    each: int = 4 * heads * tokens**2
    return max(1, min(MAX_IMAGES, MAX_BYTES // each))


def patch_distances(model: VisionTransformer) -> Tensor:
    """(patches, patches): pixels between the centres of two patches."""
    rows, columns = model.patch_embed.grid_size
    height, width = model.patch_embed.patch_size
    places = torch.cartesian_prod(torch.arange(rows) * float(height), torch.arange(columns) * float(width))
    return torch.cdist(places, places)


class _DistanceHook:
    """A hook before an attention module that adds up its heads' distances over images."""

    def __init__(self, layer: int, sums: dict[int, Tensor], distances: Tensor, num_prefix_tokens: int) -> None:
        self.layer, self.sums, self.distances, self.first = layer, sums, distances, num_prefix_tokens

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        weights = attention_weights(module, inputs[0])[:, :, self.first :, self.first :].float()
        # In place: of many tokens another copy may be too much.
        weights.div_(weights.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny))
        heads = weights.mul_(self.distances).sum(-1).mean(-1).double().sum(0)
        self.sums[self.layer] = self.sums.get(self.layer, torch.zeros_like(heads)) + heads


def attention_weights(attention: nn.Module, x: Tensor) -> Tensor:
    """Attention weights (B, num_heads, queries, keys) of MHCA or of timm's `Attention`, for its input (B, N, D)."""
    if isinstance(attention, MHCA):
        return attention.attention(x)
    num_heads, head_dim = cast(int, attention.num_heads), cast(int, attention.head_dim)
    qkv = cast(nn.Module, attention.qkv)(x).reshape(x.shape[0], x.shape[1], 3, num_heads, head_dim)
    q, k, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    q, k = cast(nn.Module, attention.q_norm)(q), cast(nn.Module, attention.k_norm)(k)
    return cast(Tensor, (q @ k.transpose(-2, -1) / head_dim**0.5).softmax(-1))
