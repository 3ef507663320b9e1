"""Weights of DeiT, of timm's ViT and of students of another size, loaded into a student."""

import logging
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import nn

from dearkd.errors import InvalidInput
from dearkd_trainer.model.export import load_model
from dearkd_trainer.model.mhca import MHCA
from dearkd_trainer.model.pretrained import load_vit_weights

POSITIONAL = ["blocks.0.attn.position_weight", "blocks.0.attn.prefix_logit"]


def student(**kwargs: object) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(
        "dearkd_tiny_patch16_224", **({"depth": 2, "mhca_blocks": 1, "img_size": 64} | kwargs)
    )
    return model.eval()


def deit(name: str = "deit_tiny_patch16_224", **kwargs: object) -> nn.Module:
    torch.manual_seed(1)
    model: nn.Module = timm.create_model(name, **({"depth": 2, "img_size": 64} | kwargs))
    return model.eval()


def test_a_deit_of_the_same_shape_loads_whole_and_mhca_keeps_its_start(caplog: pytest.LogCaptureFixture) -> None:
    model, given = student(), deit().state_dict()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with caplog.at_level(logging.INFO):
        result = load_vit_weights(model, {"model": given})
    after = model.state_dict()
    assert set(result.loaded) == set(given)
    assert all(torch.equal(after[name], given[name]) for name in given)
    assert result.initial == POSITIONAL
    assert all(torch.equal(after[name], before[name]) for name in POSITIONAL)
    assert (result.adapted, result.unused) == ([], [])
    assert "left as initialised: blocks.0.attn.position_weight" in caplog.text


def test_without_mhca_the_loaded_student_is_the_deit() -> None:
    model, source = student(mhca_blocks=0), deit()
    assert load_vit_weights(model, source.state_dict()).initial == []
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(model(images), source(images), rtol=0, atol=0)


def test_a_plain_deit_leaves_the_distillation_token_alone() -> None:
    model, given = student(distilled=True), deit().state_dict()
    before = model.pos_embed.detach().clone()
    result = load_vit_weights(model, given)
    assert result.adapted == ["pos_embed"]
    assert {"dist_token", "head_dist.weight", "head_dist.bias"} <= set(result.initial)
    assert torch.equal(model.pos_embed[:, 0], given["pos_embed"][:, 0])
    assert torch.equal(model.pos_embed[:, 1], before[:, 1])
    assert torch.equal(model.pos_embed[:, 2:], given["pos_embed"][:, 1:])


def test_a_distilled_deit_gives_a_plain_student_all_but_its_token() -> None:
    model, given = student(), deit("deit_tiny_distilled_patch16_224").state_dict()
    result = load_vit_weights(model, given)
    assert sorted(result.unused) == ["dist_token", "head_dist.bias", "head_dist.weight"]
    assert torch.equal(model.pos_embed[:, 0], given["pos_embed"][:, 0])
    assert torch.equal(model.pos_embed[:, 1:], given["pos_embed"][:, 2:])


def test_other_classes_grey_images_and_another_resolution() -> None:
    model = student(img_size=96, num_classes=7, in_chans=1)
    given = deit().state_dict()
    result = load_vit_weights(model, given)
    assert set(result.adapted) == {"pos_embed", "patch_embed.proj.weight"}
    assert result.unused == ["head.weight [1000, 192], not [7, 192]", "head.bias [1000], not [7]"]
    expected = resample_abs_pos_embed(given["pos_embed"], [6, 6], [4, 4], num_prefix_tokens=1)
    torch.testing.assert_close(model.pos_embed.detach(), expected)
    # A grey picture given to three channels is three times the same: the kernels add up.
    torch.testing.assert_close(
        model.patch_embed.proj.weight.detach(), given["patch_embed.proj.weight"].sum(1, keepdim=True)
    )


def test_a_students_own_weights_go_to_another_resolution_as_set_input_size_takes_them() -> None:
    source = student(distilled=True)
    larger = student(distilled=True, img_size=128)
    result = load_vit_weights(larger, source.state_dict())
    assert set(result.adapted) == {"pos_embed", "blocks.0.attn.position_weight"}
    assert (result.initial, result.unused) == ([], [])
    source.set_input_size((128, 128))
    for name, value in source.state_dict().items():
        torch.testing.assert_close(larger.state_dict()[name], value)


def test_timm_loads_a_students_file_at_another_resolution_in_the_same_way(tmp_path: Path) -> None:
    source = student(num_classes=5)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    loaded = timm.create_model(
        "dearkd_tiny_patch16_224",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "model.safetensors"), "num_classes": 5},
        depth=2,
        mhca_blocks=1,
        img_size=128,
        num_classes=5,
    )
    source.set_input_size((128, 128))
    for name, value in source.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value)


@pytest.mark.parametrize("way", ["pretrained", "checkpoint_path"])
@pytest.mark.parametrize("distilled", [False, True])
def test_timms_own_ways_of_loading_take_a_deit(tmp_path: Path, way: str, distilled: bool) -> None:
    source = deit("deit_tiny_distilled_patch16_224" if distilled else "deit_tiny_patch16_224")
    path = str(tmp_path / "deit.safetensors")
    save_file(source.state_dict(), path)
    how = (
        {"pretrained": True, "pretrained_cfg_overlay": {"file": path}}
        if way == "pretrained"
        else {"checkpoint_path": path}
    )
    loaded = student(distilled=distilled, **how).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in source.state_dict().items())
    local = student(distilled=distilled).state_dict()  # its start is no matter of chance
    assert all(torch.equal(loaded[name], local[name]) for name in POSITIONAL)


def test_timm_loads_a_distilled_deit_of_other_classes_but_for_its_heads(tmp_path: Path) -> None:
    source = deit("deit_tiny_distilled_patch16_224")
    path = str(tmp_path / "deit.safetensors")
    save_file(source.state_dict(), path)
    loaded = student(distilled=True, num_classes=7, pretrained=True, pretrained_cfg_overlay={"file": path})
    assert torch.equal(loaded.state_dict()["dist_token"], source.state_dict()["dist_token"])
    assert loaded.state_dict()["head_dist.weight"].shape == (7, 192)


def test_what_lacks_a_part_of_the_positional_weights_is_no_plain_vit() -> None:
    model = student(mhca_blocks=2)
    weights = model.state_dict()
    weights.pop("blocks.1.attn.prefix_logit")
    with pytest.raises(RuntimeError, match=r"Missing key.*blocks.1.attn.prefix_logit"):
        model.load_state_dict(weights)


def test_a_plain_vit_beside_a_students_configuration_is_not_that_student(tmp_path: Path) -> None:
    save_file(deit().state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "dearkd_tiny_patch16_224", "model_args": {"depth": 2, "mhca_blocks": 1, "img_size": 64}}
    with pytest.raises(InvalidInput, match=r"it lacks blocks.0.attn.position_weight, blocks.0.attn.prefix_logit"):
        load_model(config, tmp_path / "model.safetensors")


def test_a_network_of_another_kind_or_width_is_refused() -> None:
    for weights in (nn.Linear(3, 3).state_dict(), deit(embed_dim=96).state_dict()):
        model = student()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(InvalidInput, match="embed_dim"):
            load_vit_weights(model, weights)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_at_twice_the_grid_every_head_starts_by_looking_at_the_same_part_of_the_image() -> None:
    """Position alone, from a query amid a wide grid: mean and spread of where each head looks, in old tokens."""
    looks = []
    for scale in (1, 2):
        model = student(img_size=16 * 17, embed_dim=54, num_heads=9)
        model.set_input_size((16 * 17 * scale, 16 * 17 * scale))
        attention = model.blocks[0].attn
        assert isinstance(attention, MHCA)
        assert attention.grid_size == (17 * scale, 17 * scale)
        side, query = 17 * scale, 8 * scale
        logits = attention.position_logits()[:, 1 + query * side + query, 1:]
        mass = logits.detach().double().softmax(-1).view(9, side, side)
        offset = (torch.arange(side) - query).double() / scale
        centre = torch.stack([(mass.sum(2) * offset).sum(1), (mass.sum(1) * offset).sum(1)], dim=1)
        spread = (mass.sum(2) * offset**2).sum(1) - centre[:, 0] ** 2
        looks.append((centre, spread))
    torch.testing.assert_close(looks[0][0], looks[1][0], rtol=0, atol=1e-3)
    torch.testing.assert_close(looks[0][1], looks[1][1], rtol=1e-2, atol=0)
