"""Multi-head convolutional attention (MHCA): content attention plus attention by relative position, local at first.

Cordonnier et al. (ICLR 2020) give the positional form and its convolutional initialisation, ConViT (d'Ascoli et al.,
2021) its use in early blocks; DearKD drops ConViT's gate and adds dropout on the positional part. How the two parts are
joined was not found in a source, so both readings are built; the default is the one with the better students
(benchmarks/RESULTS.md), all other defaults are our choices [R].
"""

from typing import Literal, cast, get_args

import dearkd.vision  # noqa: F401  # makes timm importable

# isort: split
import torch
from timm.layers import Attention
from torch import Tensor, nn
from torch.nn import functional as F

MhcaMix = Literal["logits", "probabilities"]


def head_offsets(num_heads: int) -> list[tuple[int, int]]:
    """The tokens (rows down, columns right) that the heads look at first: the centre, then its neighbours outward."""
    reach = range(-num_heads, num_heads + 1)
    ring = [(dy, dx) for dy in reach for dx in reach]
    return sorted(ring, key=lambda offset: (offset[0] ** 2 + offset[1] ** 2, offset))[:num_heads]


def rescaled(position_weight: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Weights (num_heads, 3) that look at the same part of the image on another grid.

    Distances between the same two places grow with the grid, so the weights shrink with it [R].
    """
    down, right = (old / new for old, new in zip(old_grid, new_grid, strict=True))
    return position_weight * position_weight.new_tensor([down * right, down, right])


class MHCA(nn.Module):
    """Takes the place, and the weights, of the attention in a timm block.

    With δ the position of the key minus that of the query on the token grid, head h's positional logit is
    `v_h · (‖δ‖², δ₁, δ₂)`, and at the start `v_h = -locality·(1, -2Δ₁, -2Δ₂)`: a Gaussian around its own offset Δ.

    - `mix="logits"`: `A = softmax(Q Kᵀ/√d + Dropout(positional logits))`.
    - `mix="probabilities"`: `A = ½(softmax(Q Kᵀ/√d) + softmax(Dropout(positional logits)))`.

    Class and distillation tokens lie nowhere: as keys they have a learnt logit of their own, as queries they attend by
    content alone.

    Args:
        attention: what to take the place of; its projections and norms become this module's.
        grid_size: rows and columns of patch tokens.
        num_prefix_tokens: tokens before the patch tokens.
        mix: how content and position are joined [R].
        locality: α of the initialisation; larger is narrower [R].
        position_dropout: of the positional logits between patches; one mask for the whole batch [R].
        prefix_logit: where the prefix tokens' logits start: the head's own offset has logit `locality·‖Δ‖²`, at least
            0, so that -4 leaves them a hundredth of the mass [R].
    """

    def __init__(
        self,
        attention: Attention,
        grid_size: tuple[int, int],
        num_prefix_tokens: int = 1,
        *,
        mix: MhcaMix = "logits",
        locality: float = 1.0,
        position_dropout: float = 0.1,
        prefix_logit: float = -4.0,
    ) -> None:
        super().__init__()
        if mix not in get_args(MhcaMix):
            raise ValueError(f"mhca_mix is {mix!r}: use one of {', '.join(get_args(MhcaMix))}")
        self.num_heads: int = attention.num_heads
        self.head_dim: int = attention.head_dim
        self.grid_size = grid_size
        self.num_prefix_tokens = num_prefix_tokens
        self.mix = mix
        self.locality = locality
        self.position_dropout = position_dropout
        self.initial_prefix_logit = prefix_logit
        self.fused_attn = True
        """False computes by plain matrix products: slower, and what exporters can follow (as in timm's attention)."""
        self.qkv: nn.Module = attention.qkv
        self.q_norm: nn.Module = attention.q_norm
        self.k_norm: nn.Module = attention.k_norm
        self.attn_drop = nn.Dropout(attention.attn_drop.p)
        self.proj: nn.Module = attention.proj
        self.proj_drop: nn.Module = attention.proj_drop
        like = next(attention.parameters())
        self.position_weight = nn.Parameter(like.new_empty(self.num_heads, 3))
        self.prefix_logit = nn.Parameter(like.new_empty(self.num_heads, num_prefix_tokens))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make the positional part local again."""
        offsets = self.position_weight.new_tensor(head_offsets(self.num_heads))
        with torch.no_grad():
            self.position_weight[:, 0] = -self.locality
            self.position_weight[:, 1:] = 2 * self.locality * offsets
            self.prefix_logit.fill_(self.initial_prefix_logit)

    def set_grid_size(self, grid_size: tuple[int, int]) -> None:
        """Carry on at another resolution: every head keeps looking at the same part of the image."""
        with torch.no_grad():
            self.position_weight.copy_(rescaled(self.position_weight, self.grid_size, grid_size))
        self.grid_size = grid_size

    def position_logits(self) -> Tensor:
        """(num_heads, queries, keys) over all tokens; the same for every image."""
        square, down, right = self.position_weight.unbind(1)
        along = []
        for length, linear in zip(self.grid_size, (down, right), strict=True):
            place = torch.arange(length, device=square.device, dtype=square.dtype)
            delta = place - place[:, None]
            along.append(square[:, None, None] * delta**2 + linear[:, None, None] * delta)
        rows, columns = along
        # ‖δ‖² and δ are sums over the axes, and so is their product with v_h.
        patches = (rows[:, :, None, :, None] + columns[:, None, :, None, :]).flatten(3).flatten(1, 2)
        patches = F.dropout(patches, self.position_dropout, self.training)
        prefix = self.prefix_logit[:, None, :].expand(-1, patches.shape[1], -1)
        return F.pad(torch.cat([prefix, patches], dim=2), (0, 0, self.num_prefix_tokens, 0))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """x: (B, num_prefix_tokens + patches, dim), and so is the result. Masks are refused with a `ValueError`."""
        if attn_mask is not None or is_causal:
            raise ValueError("MHCA takes no attention mask: every token attends to all others")
        if self._goes_by_head(x):
            return cast(Tensor, self.proj_drop(self.proj(self._attend_by_head(x))))
        batch, tokens, _ = x.shape
        q, k, v = self._project(x)
        attended = self._attend(q, k, v) if self.fused_attn else self.attn_drop(self._weights(q, k)) @ v
        x = attended.transpose(1, 2).reshape(batch, tokens, self.num_heads * self.head_dim)
        return cast(Tensor, self.proj_drop(self.proj(x)))

    def attention(self, x: Tensor) -> Tensor:
        """Attention weights (B, num_heads, queries, keys), whose rows sum to 1; memory grows as tokens²."""
        q, k, _ = self._project(x)
        return self._weights(q, k)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, num_heads, tokens, head_dim) each."""
        qkv = self.qkv(x).reshape(x.shape[0], x.shape[1], 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        return self.q_norm(q), self.k_norm(k), v

    def _goes_by_head(self, x: Tensor) -> bool:
        """Tell whether torch would not fuse: on a CPU no kernel gives a mask its gradient, and torch's way around that
        is slower than plain products (benchmarks/RESULTS.md)."""
        learns_position = torch.is_grad_enabled() and self.position_weight.requires_grad
        return self.fused_attn and self.mix == "logits" and x.device.type == "cpu" and learns_position

    def _attend_by_head(self, x: Tensor) -> Tensor:
        """(B, tokens, dim), before the projection, by plain products of each head, which need no copy of q, k and v."""
        position = self.position_logits()
        heads = self.qkv(x).unflatten(2, (3 * self.num_heads, self.head_dim)).unbind(2)
        queries, keys, values = (
            heads[start : start + self.num_heads] for start in range(0, len(heads), self.num_heads)
        )
        attended = []
        for q, k, v, logits in zip(queries, keys, values, position, strict=True):
            content = (self.q_norm(q) * self.head_dim**-0.5) @ self.k_norm(k).transpose(1, 2)
            weights = content.add_(logits.to(content.dtype)).softmax(-1)  # in place: the largest tensor here
            attended.append(self.attn_drop(weights) @ v)
        return torch.cat(attended, dim=2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        position = self.position_logits().to(q.dtype)
        dropout = self.attn_drop.p if self.training else 0.0
        if self.mix == "logits":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=position[None], dropout_p=dropout)
        first = self.num_prefix_tokens
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        by_position: Tensor = self.attn_drop(position[:, first:].softmax(-1)) @ v
        joined = (attended[:, :, first:] + by_position) / 2
        return torch.cat([attended[:, :, :first], joined], dim=2)

    def _weights(self, q: Tensor, k: Tensor) -> Tensor:
        content = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
        position = self.position_logits().to(q.dtype)
        if self.mix == "logits":
            return cast(Tensor, content.add_(position).softmax(-1))  # in place: the largest tensor here
        first = self.num_prefix_tokens
        weights = content.softmax(-1)
        joined = (weights[:, :, first:] + position[:, first:].softmax(-1)) / 2
        return torch.cat([weights[:, :, :first], joined], dim=2)
