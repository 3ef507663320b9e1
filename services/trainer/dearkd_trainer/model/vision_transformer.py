"""The network of DearKD-ViT: timm's VisionTransformer with MHCA in early blocks and, if asked, a distillation token.

Torch and timm are all that this and `mhca` need: `hub_files` joins both into the model file of an export, which runs
where there is no dearkd. What training asks of a student besides is in `dearkd_vit`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import dearkd.vision  # noqa: F401  # makes timm importable

# isort: split
import torch
from timm.layers import Attention, resample_abs_pos_embed, resample_patch_embed, trunc_normal_
from timm.models import build_model_with_cfg
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dearkd_trainer.model.mhca import MHCA, MhcaMix, rescaled

POSITIONAL = (".position_weight", ".prefix_logit")
"""Endings of the names of MHCA's own weights."""
POSITIONS = "pos_embed"
PATCHES = "patch_embed.proj.weight"

NetworkT = TypeVar("NetworkT", bound="DearKDVisionTransformer")


class DearKDVisionTransformer(VisionTransformer):
    """A ViT whose first `mhca_blocks` blocks attend by content and by position.

    Names of weights are DeiT's, so that its checkpoints load where shapes allow: by dearkd's `load_vit_weights`, by
    timm's own `pretrained=True` and `checkpoint_path` too. With `mhca_blocks=0` it computes what timm's
    `VisionTransformer` does.

    Args:
        mhca_blocks: how many blocks from the first have MHCA.
        distilled: whether there is a distillation token with a head of its own, as in DeiT. It serves training only:
            predictions are those of the class head.
        mhca_mix, mhca_locality, mhca_dropout: see `MHCA` [R].
        kwargs: of timm's `VisionTransformer`. Pooling is by the class token.

    Raises:
        ValueError: if the patches do not cover the image or are left out at times, or MHCA or the pooling does not fit
            the rest.
    """

    blocks: nn.Sequential
    cls_token: nn.Parameter
    pos_embed: nn.Parameter

    def __init__(
        self,
        *,
        mhca_blocks: int = 0,
        distilled: bool = False,
        mhca_mix: MhcaMix = "logits",
        mhca_locality: float = 1.0,
        mhca_dropout: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if self.global_pool != "token" or self.num_prefix_tokens != 1 or self.pos_embed is None or self.no_embed_class:
            raise ValueError(
                "DearKDViT predicts from its class token, and its tokens have places: leave global_pool, class_token, "
                "reg_tokens, pos_embed and no_embed_class alone"
            )
        if any(kwargs.get(name) for name in ("dynamic_img_size", "dynamic_img_pad", "patch_drop_rate")):
            raise ValueError(
                "DearKDViT has one grid of patches, of which none is left out: leave dynamic_img_size, dynamic_img_pad "
                "and patch_drop_rate alone; set_input_size goes to another resolution"
            )
        _require_whole_patches(self.patch_embed.img_size, self.patch_embed.patch_size)
        if not 0 <= mhca_blocks <= len(self.blocks):
            raise ValueError(f"mhca_blocks is {mhca_blocks}, but the model has {len(self.blocks)} blocks")
        self.mhca_blocks = mhca_blocks
        self.distilled = distilled
        if distilled:
            self.num_prefix_tokens = 2
            self.dist_token = nn.Parameter(torch.empty(1, 1, self.embed_dim))
            self.pos_embed = nn.Parameter(torch.empty(1, self.patch_embed.num_patches + 2, self.embed_dim))
            self.head_dist = self._new_head(self.num_classes)
            trunc_normal_(self.dist_token, std=0.02)
            trunc_normal_(self.pos_embed, std=0.02)
        for block in list(self.blocks)[:mhca_blocks]:
            block.attn = MHCA(
                cast(Attention, block.attn),
                self.patch_embed.grid_size,
                self.num_prefix_tokens,
                mix=mhca_mix,
                locality=mhca_locality,
                position_dropout=mhca_dropout,
            )

    def _new_head(self, num_classes: int) -> nn.Module:
        if num_classes == 0:
            return nn.Identity()
        head = nn.Linear(self.embed_dim, num_classes)
        trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return head

    @torch.jit.ignore  # type: ignore[untyped-decorator]  # torch has no types there
    def no_weight_decay(self) -> set[str]:
        """Names of the weights without decay: tokens, positional embeddings, MHCA's positional weights."""
        positional = {f"blocks.{block}.attn{name}" for block in range(self.mhca_blocks) for name in POSITIONAL}
        return {"pos_embed", "cls_token", "dist_token"} | positional

    @torch.jit.ignore  # type: ignore[untyped-decorator]  # torch has no types there
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Weights by depth, for layer-wise learning rates: the distillation token is as deep as the class token."""
        groups = cast("dict[str, Any]", super().group_matcher(coarse=coarse))
        return {**groups, "stem": f"{groups['stem']}|dist_token"}

    def set_input_size(
        self, img_size: tuple[int, int] | None = None, patch_size: tuple[int, int] | None = None
    ) -> None:
        """Go to another resolution: the positional embedding is resampled, MHCA rescaled.

        Raises:
            ValueError: if the patches do not cover the image.
        """
        _require_whole_patches(img_size or self.patch_embed.img_size, patch_size or self.patch_embed.patch_size)
        super().set_input_size(img_size=img_size, patch_size=patch_size)
        for module in self.modules():
            if isinstance(module, MHCA):
                module.set_grid_size(self.patch_embed.grid_size)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load as torch does, but accept a plain ViT's weights as complete: MHCA's own, which it lacks, stay."""
        own = {name: value for name, value in self.state_dict().items() if name.endswith(POSITIONAL)}
        if strict and not any(name in state_dict for name in own):
            state_dict = {**state_dict, **own}
        return super().load_state_dict(state_dict, strict, assign)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give it new heads for another number of classes."""
        if global_pool not in (None, "", "token"):
            raise ValueError(f"global_pool is {global_pool!r}: DearKDViT predicts from its class token")
        super().reset_classifier(num_classes)
        if self.distilled:
            self.head_dist = self._new_head(num_classes).to(self.pos_embed)

    def _pos_embed(self, x: Tensor) -> Tensor:
        prefix = [self.cls_token, self.dist_token] if self.distilled else [self.cls_token]
        x = torch.cat([*(token.expand(x.shape[0], -1, -1) for token in prefix), x], dim=1)
        return cast(Tensor, self.pos_drop(x + self.pos_embed))


def _require_whole_patches(img_size: Sequence[int], patch_size: Sequence[int]) -> None:
    if any(side % patch for side, patch in zip(img_size, patch_size, strict=True)):
        raise ValueError(
            f"patches of {'×'.join(map(str, patch_size))} pixels do not cover an image of "
            f"{'×'.join(map(str, img_size))}: choose a patch_size that divides img_size"
        )


def build_network(
    family: type[NetworkT], variant: str, pretrained: bool, native: Mapping[str, int], kwargs: Mapping[str, Any]
) -> NetworkT:
    """A network of a registered architecture, as timm's entry points build theirs.

    Args:
        family: its class.
        variant: the architecture's name.
        pretrained: True to load the weights that timm's configuration names.
        native: `img_size`, `patch_size`, `embed_dim`, `depth`, `num_heads` and `mhca_blocks` of the architecture.
        kwargs: what `timm.create_model` was given, which goes before.
    """
    sizes = {**native, **kwargs}
    if "mhca_blocks" not in kwargs:
        sizes["mhca_blocks"] = min(native["mhca_blocks"], sizes["depth"])
    model: NetworkT = build_model_with_cfg(
        family,
        variant,
        pretrained,
        pretrained_filter_fn=adapt,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **sizes,
    )
    return model


def default_cfg(image_size: int) -> dict[str, Any]:
    """The configuration of an architecture without weights, as timm keeps it.

    Args:
        image_size: native, in pixels.
    """
    return {
        "num_classes": 1000,
        "input_size": (3, image_size, image_size),
        "fixed_input_size": True,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "patch_embed.proj",
        "classifier": ("head", "head_dist"),
    }


def adapt(weights: Mapping[str, Any], student: Any) -> dict[str, Tensor]:
    """The same weights, resized to a student's grid, patch size and prefix tokens where they differ.

    It is also what timm calls on a checkpoint when it loads one by itself (`pretrained=True`), before it sees to the
    channels and to heads for other classes.

    Raises:
        ValueError: if the weights' patches are neither as many as the student's nor a square.
    """
    found = unwrapped(weights)
    grid: tuple[int, int] = student.patch_embed.grid_size
    old_grid = grid
    if POSITIONS in found:
        source_tokens = 2 if "dist_token" in found else 1
        positions = found[POSITIONS]
        old_grid = _grid_of(positions.shape[1] - source_tokens, grid)
        if old_grid != grid or source_tokens != student.num_prefix_tokens:
            prefix, patches = positions[:, :source_tokens], positions[:, source_tokens:]
            patches = resample_abs_pos_embed(patches, list(grid), list(old_grid), num_prefix_tokens=0)
            own_prefix = student.pos_embed[:, : student.num_prefix_tokens].to(positions)
            prefix = torch.cat([prefix, own_prefix[:, source_tokens:]], dim=1)[:, : student.num_prefix_tokens]
            found[POSITIONS] = torch.cat([prefix, patches], dim=1)
    if PATCHES in found:
        kernel = found[PATCHES]
        size = student.patch_embed.proj.weight.shape[2:]
        if kernel.shape[2:] != size:
            found[PATCHES] = resample_patch_embed(kernel, list(size))
    for name, module in student.named_modules():
        if isinstance(module, MHCA) and f"{name}.position_weight" in found and old_grid != grid:
            found[f"{name}.position_weight"] = rescaled(found[f"{name}.position_weight"], old_grid, grid)
    return found


def unwrapped(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a `state_dict()`, which may stand under `model` or `state_dict`."""
    return dict(weights.get("state_dict", weights.get("model", weights)))


def _grid_of(patches: int, grid: tuple[int, int]) -> tuple[int, int]:
    """The grid of so many patches: the student's own, or else a square."""
    if patches == grid[0] * grid[1]:
        return grid
    side = math.isqrt(patches)
    if side**2 != patches:
        raise ValueError(f"the weights are for {patches} patches, which are no square, and cannot be resized")
    return side, side
