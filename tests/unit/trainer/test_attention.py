"""Mean attention distance against loops, on attention that is known and on networks as they are."""

import math

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dearkd_trainer.evaluate.attention import recorded_distances, to_row
from dearkd_trainer.evaluate.pictures import attention_distance_picture, confusion_picture
from dearkd_trainer.model import attention
from dearkd_trainer.model.attention import attention_distance, attention_weights, head_distances, patch_distances
from dearkd_trainer.model.dearkd_vit import DearKDViT
from dearkd_trainer.model.mhca import MHCA

SIZES = {
    "img_size": (24, 32),
    "patch_size": 8,
    "in_chans": 1,
    "num_classes": 3,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 3,
}


def make(**kwargs: object) -> DearKDViT:
    torch.manual_seed(0)
    return DearKDViT(**SIZES, **kwargs).eval()


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 1, 24, 32, generator=torch.Generator().manual_seed(1))


def by_loops(weights: Tensor, prefix: int, columns: int, patch: int) -> list[float]:
    """Of each head of (B, heads, tokens, tokens): every query of every image on its own."""
    distances = []
    for head in range(weights.shape[1]):
        means = []
        for image in weights[:, head].tolist():
            for query in range(prefix, len(image)):
                total = far = 0.0
                for key in range(prefix, len(image)):
                    there, here = divmod(key - prefix, columns), divmod(query - prefix, columns)
                    total += image[query][key]
                    far += image[query][key] * patch * math.dist(there, here)
                means.append(far / total)
        distances.append(sum(means) / len(means))
    return distances


@pytest.mark.parametrize("mix", ["logits", "probabilities"])
@pytest.mark.parametrize("distilled", [False, True])
def test_distances_are_those_of_loops_over_the_weights(mix: str, distilled: bool) -> None:
    model = make(mhca_blocks=1, distilled=distilled, mhca_mix=mix).train()
    inputs: dict[int, Tensor] = {}
    for index, block in enumerate(model.blocks):
        block.attn.register_forward_pre_hook(lambda _, given, index=index: inputs.__setitem__(index, given[0]))
    found = head_distances(model, images())
    assert model.training
    with torch.no_grad():
        model.eval()(images())
        for index, block in enumerate(model.blocks):
            weights = attention_weights(block.attn, inputs[index])
            expected = by_loops(weights.double(), model.num_prefix_tokens, columns=4, patch=8)
            assert found[index] == pytest.approx(expected, rel=1e-5)
    assert attention_distance(model, images()) == pytest.approx([sum(heads) / 3 for heads in found])
    assert [len(block.attn._forward_pre_hooks) for block in model.blocks] == [1, 1]  # ours here, none left behind


@pytest.mark.parametrize("mix", ["logits", "probabilities"])
def test_weights_are_those_by_which_the_module_attends(mix: str) -> None:
    model = make(mhca_blocks=1, mhca_mix=mix)
    x = torch.randn(2, 13, 24, generator=torch.Generator().manual_seed(2))
    for block in model.blocks:
        attention = block.attn
        weights = attention_weights(attention, x)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 13))
        values = attention.qkv(x)[..., 48:].unflatten(2, (3, 8)).transpose(1, 2)
        attended = attention.proj((weights @ values).transpose(1, 2).flatten(2))
        torch.testing.assert_close(attended, attention(x))
        attention.fused_attn = False
        torch.testing.assert_close(attention(x), attended)


def test_heads_one_by_one_learn_what_all_at_once_do() -> None:
    """On a CPU the first is what trains; the second is timm's own way, of which exporters make their graph."""
    attention = make(mhca_blocks=1).blocks[0].attn.double().train()
    attention.position_dropout = 0.0
    x = torch.randn(2, 13, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    wanted = [x, *attention.parameters()]
    gradients = []
    for fused in (True, False):
        attention.fused_attn = fused
        gradients.append(torch.autograd.grad(attention(x).square().sum(), wanted))
    assert all(gradient.any() for gradient in gradients[0])
    torch.testing.assert_close(*gradients)


def test_known_attention_gives_known_distances() -> None:
    model = make(mhca_blocks=1)
    attention = model.blocks[0].attn
    assert isinstance(attention, MHCA)
    nn.init.zeros_(attention.qkv.weight)
    nn.init.zeros_(attention.qkv.bias)
    with torch.no_grad():
        attention.prefix_logit.fill_(5.0)  # what goes to the class token does not count
        attention.position_weight[0] = torch.tensor([-100.0, 0.0, 0.0])  # itself
        attention.position_weight[1] = 0.0  # everybody alike
        attention.position_weight[2] = torch.tensor([-100.0, 0.0, 200.0])  # its right neighbour, or itself at the edge
    nobody, all_alike, right = head_distances(model, images())[0]
    assert nobody == pytest.approx(0, abs=1e-6)
    assert all_alike == pytest.approx(patch_distances(model).mean().item(), rel=1e-6)
    assert right == pytest.approx(8 * 3 / 4, rel=1e-6)


def test_of_timms_own_vit_too() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=48, depth=1)
    assert isinstance(model, VisionTransformer)
    (heads,) = head_distances(model, torch.zeros(40, 3, 48, 48))  # two chunks
    assert heads == pytest.approx([patch_distances(model).mean().item()] * 3, rel=0.2)


def test_of_many_tokens_few_images_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(mhca_blocks=1)
    weights = 3 * 13**2 * 4  # heads, tokens, bytes of float32
    expected = head_distances(model, images(5))
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    for limit, chunks in ((100 * weights, [5]), (2 * weights, [2, 2, 1]), (2 * weights - 1, [1] * 5), (1, [1] * 5)):
        monkeypatch.setattr(attention, "MAX_BYTES", limit)
        seen.clear()
        found = head_distances(model, images(5))
        assert seen == chunks
        assert [pytest.approx(heads) for heads in expected] == found


def test_rows_of_metrics_carry_them_to_the_picture() -> None:
    rows = [
        {"epoch": 1, "stage": 1, "loss": 2.0},
        {"epoch": 2, "stage": 1, "loss": 1.0} | to_row([4.5, 6.0]),
        {"epoch": 3, "stage": 2, "loss": 1.0} | to_row([5.5, 7.0]),
    ]
    series = recorded_distances(rows)
    assert series == {"after epoch 2 (stage 1)": [4.5, 6.0], "after epoch 3 (stage 2)": [5.5, 7.0]}
    for picture in (attention_distance_picture(series, [[4.0, 7.0], [7.0]]), confusion_picture([[1, 0], [0, 1]], "ab")):
        assert picture.startswith(b"\x89PNG")
