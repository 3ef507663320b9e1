"""DearKD-ViT as a student: what training, evaluation and export ask of the network in `vision_transformer`.

Importing this module registers every name of `dearkd.specs.recipes.STUDENTS` with timm, so that
`timm.create_model("dearkd_tiny_patch16_224", mhca_blocks=4, distilled=True)` works.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import dearkd.vision  # noqa: F401  # makes timm importable

# isort: split
from timm.models import generate_default_cfgs
from torch import Tensor

from dearkd.specs import StudentSpec
from dearkd.specs.recipes import STUDENTS
from dearkd_trainer.model.attention import attention_rollout, head_distances
from dearkd_trainer.model.hub_files import model_file
from dearkd_trainer.model.pretrained import fit_input
from dearkd_trainer.model.student import FAMILIES, HiddenShape, Student, StudentOutput, register_student
from dearkd_trainer.model.vision_transformer import DearKDVisionTransformer, build_network, default_cfg


class DearKDViT(DearKDVisionTransformer, Student):
    """A ViT whose first `mhca_blocks` blocks attend by content and by position, which can be distilled into.

    Arguments are those of `DearKDVisionTransformer`.
    """

    kind = "vision transformer"

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

    @classmethod
    def hub_code(cls) -> str:
        """Our own source, as one file."""
        return model_file(native_sizes())

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


def native_sizes() -> dict[str, dict[str, int]]:
    """The arguments of each architecture at its native size, as timm names them."""
    return {
        name: {
            "img_size": size.image_size,
            "patch_size": size.patch_size,
            "embed_dim": size.embed_dim,
            "depth": size.depth,
            "num_heads": size.num_heads,
            "mhca_blocks": size.mhca_blocks,
        }
        for name, size in STUDENTS.items()
        if FAMILIES.get(name, DearKDViT) is DearKDViT
    }


def _create(variant: str, pretrained: bool, kwargs: dict[str, Any]) -> DearKDViT:
    return build_network(DearKDViT, variant, pretrained, native_sizes()[variant], kwargs)


default_cfgs = generate_default_cfgs({name: default_cfg(native["img_size"]) for name, native in native_sizes().items()})


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
