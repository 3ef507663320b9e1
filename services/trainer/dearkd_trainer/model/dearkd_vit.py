"""DearKD-ViT: a timm VisionTransformer with MHCA in its early blocks and, if asked, a distillation token.

Importing this module registers every name of `dearkd.specs.recipes.STUDENTS` with timm, so that
`timm.create_model("dearkd_tiny_patch16_224", mhca_blocks=4, distilled=True)` works.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import dearkd.vision  # noqa: F401  # makes timm importable

# isort: split
import torch
from timm.layers import Attention, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dearkd.specs import StudentSpec
from dearkd.specs.recipes import STUDENTS
from dearkd_trainer.model.attention import attention_rollout, head_distances
from dearkd_trainer.model.mhca import MHCA, MhcaMix
from dearkd_trainer.model.pretrained import adapt, fit_input
from dearkd_trainer.model.student import HiddenShape, Student, StudentOutput, register_student

POSITIONAL = (".position_weight", ".prefix_logit")
"""Endings of the names of MHCA's own weights."""


class DearKDViT(VisionTransformer, Student):
    """A ViT whose first `mhca_blocks` blocks attend by content and by position.

    Names of weights are DeiT's, so that its checkpoints load where shapes allow (`pretrained.load_vit_weights`), by
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

    kind = "vision transformer"
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

    @classmethod
    def model_args(cls, spec: StudentSpec, num_classes: int, in_chans: int) -> dict[str, Any]:
        """The arguments of `timm.create_model` for a spec."""
        return {
            "num_classes": num_classes,
            "in_chans": in_chans,
            "img_size": spec.image_size,
            "patch_size": spec.patch_size,
            "embed_dim": spec.embed_dim,
            "depth": spec.depth,
            "num_heads": spec.num_heads,
            "mhca_blocks": spec.mhca_blocks,
            "drop_path_rate": spec.drop_path_rate,
            "distilled": spec.distilled,
            "mhca_mix": spec.mhca_mix,
            "mhca_locality": spec.mhca_locality,
            "mhca_dropout": spec.mhca_dropout,
        }

    @property
    def hidden_shapes(self) -> list[HiddenShape]:
        """The patch tokens after each block, as a map."""
        return [HiddenShape(self.embed_dim, *self.patch_embed.grid_size)] * len(self.blocks)

    @property
    def early_blocks(self) -> int:
        """The blocks with MHCA, or a third of all where there are none [R]."""
        return self.mhca_blocks or max(1, len(self.blocks) // 3)

    @property
    def classifiers(self) -> tuple[str, ...]:
        return ("head", "head_dist") if self.distilled else ("head",)

    def forward_training(self, x: Tensor, blocks: Sequence[int]) -> StudentOutput:
        """Logits of both tokens, and the patch tokens after the given blocks, as maps."""
        tokens = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))
        hidden = []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index in blocks:
                patches = tokens[:, self.num_prefix_tokens :]
                hidden.append(patches.transpose(1, 2).unflatten(2, self.patch_embed.grid_size))
        tokens = self.norm(tokens)
        dist_logits = self.head_dist(self.head_drop(tokens[:, 1])) if self.distilled else None
        return StudentOutput(self.forward_head(tokens), dist_logits, hidden)

    def adapted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of another student, resampled to this one's grid, patch size and channels."""
        return fit_input(weights, self)

    def attention_distances(self, images: Tensor) -> list[list[float]]:
        """Mean attention distance of each head of each layer, in pixels."""
        return head_distances(self, images)

    def attention_maps(self, images: Tensor) -> Tensor | None:
        """Shares of the patches in each answer, (N, rows, columns), by attention rollout."""
        return attention_rollout(self, images)


def _require_whole_patches(img_size: Sequence[int], patch_size: Sequence[int]) -> None:
    if any(side % patch for side, patch in zip(img_size, patch_size, strict=True)):
        raise ValueError(
            f"patches of {'×'.join(map(str, patch_size))} pixels do not cover an image of "
            f"{'×'.join(map(str, img_size))}: choose a patch_size that divides img_size"
        )


def _create(variant: str, pretrained: bool, kwargs: dict[str, Any]) -> DearKDViT:
    size = STUDENTS[variant]
    sizes = {
        "img_size": size.image_size,
        "patch_size": size.patch_size,
        "embed_dim": size.embed_dim,
        "depth": size.depth,
        "num_heads": size.num_heads,
        "mhca_blocks": min(size.mhca_blocks, kwargs.get("depth", size.depth)),
    }
    model: DearKDViT = build_model_with_cfg(
        DearKDViT,
        variant,
        pretrained,
        pretrained_filter_fn=adapt,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **(sizes | kwargs),
    )
    return model


default_cfgs = generate_default_cfgs(
    {
        name: {
            "num_classes": 1000,
            "input_size": (3, size.image_size, size.image_size),
            "fixed_input_size": True,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "patch_embed.proj",
            "classifier": ("head", "head_dist"),
        }
        for name, size in STUDENTS.items()
    }
)


@register_student(DearKDViT)
def dearkd_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> DearKDViT:
    """DeiT-Ti's size [P], MHCA in 4 of 12 blocks [R]."""
    return _create("dearkd_tiny_patch16_224", pretrained, kwargs)


@register_student(DearKDViT)
def dearkd_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> DearKDViT:
    """DeiT-S's size [P], MHCA in 4 of 12 blocks [R]."""
    return _create("dearkd_small_patch16_224", pretrained, kwargs)


@register_student(DearKDViT)
def dearkd_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> DearKDViT:
    """DeiT-B's size [P], MHCA in 4 of 12 blocks [R]."""
    return _create("dearkd_base_patch16_224", pretrained, kwargs)


@register_student(DearKDViT)
def dearkd_micro_patch8_32(pretrained: bool = False, **kwargs: Any) -> DearKDViT:
    """A size for images of up to 64 px, trained on a CPU [R]."""
    return _create("dearkd_micro_patch8_32", pretrained, kwargs)
