"""DearKD-ViT against timm's own vision transformers, given the same weights."""

import pytest
import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from dearkd.specs import StudentSpec
from dearkd.specs.recipes import STUDENTS
from dearkd_trainer.model.dearkd_vit import DearKDViT
from dearkd_trainer.model.mhca import MHCA
from dearkd_trainer.model.student import StudentOutput, create_student

SMALL = {
    "img_size": 32,
    "patch_size": 8,
    "in_chans": 1,
    "num_classes": 5,
    "embed_dim": 32,
    "depth": 3,
    "num_heads": 4,
}


def images(side: int = 32) -> torch.Tensor:
    return torch.randn(2, 1, side, side, generator=torch.Generator().manual_seed(1))


def small(**kwargs: object) -> DearKDViT:
    torch.manual_seed(0)
    return DearKDViT(**SMALL, **kwargs).eval()


@pytest.mark.parametrize("name", STUDENTS)
def test_every_size_is_registered_with_timm(name: str) -> None:
    size = STUDENTS[name]
    model = timm.create_model(name, num_classes=7, in_chans=1, depth=2, mhca_blocks=1, drop_path_rate=0.1)
    assert model.embed_dim == size.embed_dim
    assert model.blocks[0].attn.num_heads == size.num_heads
    assert model.patch_embed.img_size == (size.image_size, size.image_size)
    assert [isinstance(block.attn, MHCA) for block in model.blocks] == [True, False]


def test_without_mhca_it_is_timms_vit() -> None:
    plain = VisionTransformer(**SMALL).eval()
    student = small()
    student.load_state_dict(plain.state_dict())
    torch.testing.assert_close(student(images()), plain(images()), rtol=0, atol=0)


def test_with_a_distillation_token_it_is_deit_but_for_the_mean_of_the_heads() -> None:
    deit = VisionTransformerDistilled(**SMALL).eval()
    deit.set_distilled_training(True)
    student = small(distilled=True)
    student.load_state_dict(deit.state_dict())
    by_class, by_distillation = deit.train()(images())
    output = student.forward_training(images(), [])
    torch.testing.assert_close(output.logits, by_class)
    torch.testing.assert_close(output.dist_logits, by_distillation)
    torch.testing.assert_close(student(images()), by_class)


def test_deit_weights_load_but_for_the_positional_ones() -> None:
    deit = timm.create_model("deit_tiny_distilled_patch16_224", depth=2)
    student = timm.create_model("dearkd_tiny_patch16_224", depth=2, mhca_blocks=1, distilled=True)
    keys = student.load_state_dict(deit.state_dict(), strict=False)
    assert keys.unexpected_keys == []
    assert keys.missing_keys == ["blocks.0.attn.position_weight", "blocks.0.attn.prefix_logit"]


@pytest.mark.parametrize("distilled", [False, True])
def test_training_sees_the_patch_tokens_of_the_blocks_it_asks_for(distilled: bool) -> None:
    student = small(mhca_blocks=2, distilled=distilled)
    output = student.forward_training(images(), [0, 2])
    assert isinstance(output, StudentOutput)
    assert (output.dist_logits is not None) == distilled
    expected = student.forward_intermediates(images(), indices=[0, 2], intermediates_only=True)
    for hidden, timms in zip(output.hidden, expected, strict=True):
        assert hidden.shape == (2, 32, 4, 4)
        torch.testing.assert_close(hidden, timms)
    torch.testing.assert_close(output.logits, student(images()))


def test_predictions_do_not_hang_on_the_distillation_head() -> None:
    student = small(mhca_blocks=1, distilled=True)
    before = student(images())
    nn.init.ones_(student.head_dist.weight)
    torch.testing.assert_close(student(images()), before, rtol=0, atol=0)


def test_it_goes_on_at_another_resolution() -> None:
    student = small(mhca_blocks=2, distilled=True)
    student.set_input_size((48, 48))
    assert student(images(48)).shape == (2, 5)
    assert student.blocks[0].attn.grid_size == (6, 6)
    assert student.pos_embed.shape == (1, 38, 32)


def test_new_classes_come_with_new_heads() -> None:
    student = small(distilled=True)
    student.reset_classifier(3)
    output = student.forward_training(images(), [])
    assert output.logits.shape == output.dist_logits.shape == (2, 3)


def test_positional_weights_and_tokens_are_not_decayed() -> None:
    names = small(mhca_blocks=2, distilled=True).no_weight_decay()
    assert {"pos_embed", "cls_token", "dist_token", "blocks.1.attn.position_weight"} <= names
    assert not any(name.startswith("blocks.2") for name in names)


def test_a_spec_decides_the_student() -> None:
    spec = StudentSpec(
        architecture="dearkd_micro_patch8_32",
        image_size=64,
        patch_size=16,
        embed_dim=48,
        depth=3,
        num_heads=3,
        mhca_blocks=2,
        drop_path_rate=0.2,
        distilled=True,
        mhca_mix="probabilities",
        mhca_dropout=0.3,
    )
    student = create_student(spec, num_classes=4, in_chans=3)
    assert student(torch.zeros(1, 3, 64, 64)).shape == (1, 4)
    attention = student.blocks[1].attn
    assert (attention.mix, attention.position_dropout, attention.grid_size) == ("probabilities", 0.3, (4, 4))
    assert student.blocks[2].drop_path1.drop_prob == pytest.approx(0.2)


def test_a_shallow_student_of_a_registered_size_has_mhca_in_all_of_its_blocks() -> None:
    assert timm.create_model("dearkd_tiny_patch16_224", depth=2).mhca_blocks == 2
    assert timm.create_model("dearkd_tiny_patch16_224", depth=6).mhca_blocks == 4


def test_impossible_students_are_refused() -> None:
    with pytest.raises(ValueError, match="mhca_blocks is 4, but the model has 3 blocks"):
        small(mhca_blocks=4)
    with pytest.raises(ValueError, match="class token"):
        small(global_pool="avg")
    for argument in ({"dynamic_img_size": True}, {"dynamic_img_pad": True}, {"patch_drop_rate": 0.5}):
        with pytest.raises(ValueError, match="set_input_size goes to another resolution"):
            small(**argument)
    with pytest.raises(ValueError, match="patches of 5×5 pixels do not cover an image of 32×32"):
        DearKDViT(**(SMALL | {"patch_size": 5}))
    with pytest.raises(ValueError, match="patches of 8×8 pixels do not cover an image of 48×44"):
        small().set_input_size((48, 44))
