"""MHCA against timm's attention, against loops over its formula, and at its initialisation."""

import math

import pytest
import torch
from timm.layers import Attention
from torch import Tensor

from dearkd_trainer.model.mhca import MHCA, head_offsets

DIM, HEADS, GRID, PREFIX = 24, 6, (4, 5), 2


def make(mix: str = "logits", **kwargs: float) -> MHCA:
    torch.manual_seed(0)
    mhca = MHCA(Attention(DIM, HEADS, qkv_bias=True), GRID, PREFIX, mix=mix, **kwargs)
    return mhca.double().eval()


def tokens(batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, PREFIX + GRID[0] * GRID[1], DIM, dtype=torch.float64, generator=generator)


def test_without_positional_weights_it_is_timms_attention() -> None:
    torch.manual_seed(0)
    plain = Attention(DIM, HEADS, qkv_bias=True).double().eval()
    mhca = MHCA(plain, GRID, PREFIX)
    torch.nn.init.zeros_(mhca.position_weight)
    torch.nn.init.zeros_(mhca.prefix_logit)
    torch.testing.assert_close(mhca.eval()(tokens()), plain(tokens()))


@pytest.mark.parametrize("mix", ["logits", "probabilities"])
def test_it_computes_its_formula(mix: str) -> None:
    mhca = make(mix)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        mhca.position_weight.normal_(generator=generator)
        mhca.prefix_logit.normal_(generator=generator)
    torch.testing.assert_close(mhca(tokens()), by_loops(mhca, tokens(), mix))


def by_loops(mhca: MHCA, x: Tensor, mix: str) -> Tensor:
    """A_h = softmax(Q Kᵀ/√d + v_h·r), or ½(softmax(Q Kᵀ/√d) + softmax(v_h·r)), one query at a time."""
    places = [None] * PREFIX + [(row, column) for row in range(GRID[0]) for column in range(GRID[1])]
    depth = DIM // HEADS
    joined = torch.zeros_like(x)
    for image in range(len(x)):
        q, k, v = (x[image] @ mhca.qkv.weight.T + mhca.qkv.bias).split(DIM, dim=1)
        for head in range(HEADS):
            own = slice(head * depth, (head + 1) * depth)
            for i, query in enumerate(places):
                content = torch.stack([q[i, own] @ k[j, own] / math.sqrt(depth) for j in range(len(places))])
                position = torch.zeros(len(places), dtype=x.dtype)
                for j, key in enumerate(places):
                    if query is None:
                        continue
                    if key is None:
                        position[j] = mhca.prefix_logit[head, j]
                        continue
                    down, right = key[0] - query[0], key[1] - query[1]
                    r = torch.tensor([down**2 + right**2, down, right], dtype=x.dtype)
                    position[j] = mhca.position_weight[head] @ r
                if mix == "logits" or query is None:
                    weights = torch.softmax(content + position, 0)
                else:
                    weights = (torch.softmax(content, 0) + torch.softmax(position, 0)) / 2
                joined[image, i, own] = weights @ v[:, own]
    return joined @ mhca.proj.weight.T + mhca.proj.bias


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("mix", ["logits", "probabilities"])
def test_its_gradients_are_those_of_its_formula(mix: str, fused: bool) -> None:
    mhca = make(mix)
    mhca.fused_attn = fused
    with torch.no_grad():
        mhca.position_weight.normal_(generator=torch.Generator().manual_seed(2))
        mhca.prefix_logit.normal_(generator=torch.Generator().manual_seed(3))
    x = tokens().requires_grad_()
    names, weights = zip(*mhca.named_parameters(), strict=True)
    towards = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(4))
    found = torch.autograd.grad((mhca(x) * towards).sum(), [x, *weights])
    expected = torch.autograd.grad((by_loops(mhca, x, mix) * towards).sum(), [x, *weights])
    for name, mine, theirs in zip(["x", *names], found, expected, strict=True):
        assert theirs.abs().max() > 0, name
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10, msg=name)


def test_heads_look_at_the_centre_and_then_outward() -> None:
    nine = head_offsets(9)
    assert nine[0] == (0, 0)
    assert set(nine[1:5]) == {(0, 1), (1, 0), (0, -1), (-1, 0)}
    assert set(nine[5:]) == {(1, 1), (1, -1), (-1, 1), (-1, -1)}


def test_at_first_every_head_is_a_gaussian_around_its_own_offset() -> None:
    torch.manual_seed(0)
    mhca = MHCA(Attention(9 * 4, 9), (7, 7), 1, locality=1.0).eval()
    with torch.no_grad():
        by_position = mhca.position_logits()[:, 1:, 1:].softmax(-1).view(9, 7, 7, 7, 7)
    centre = by_position[:, 3, 3]
    seen = []
    for head in range(9):
        row, column = divmod(int(centre[head].argmax()), 7)
        seen.append((row - 3, column - 3))
        distance = torch.tensor([[(r - row) ** 2 + (c - column) ** 2 for c in range(7)] for r in range(7)])
        bell = torch.exp(-distance.double())
        torch.testing.assert_close(centre[head].double(), bell / bell.sum(), rtol=1e-4, atol=1e-6)
    assert seen == head_offsets(9)


def test_prefix_tokens_take_little_from_the_centre_head_at_first() -> None:
    mhca = make()
    with torch.no_grad():
        by_position = mhca.position_logits()[0].softmax(-1)
    assert by_position[PREFIX:, :PREFIX].max() < 0.01


def test_prefix_tokens_attend_by_content_alone() -> None:
    mhca = make()
    with torch.no_grad():
        assert mhca.position_logits()[:, :PREFIX].eq(0).all()


def test_the_positional_term_is_computed_once_a_forward_and_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    mhca = make()
    calls = []
    once = MHCA.position_logits
    monkeypatch.setattr(MHCA, "position_logits", lambda self: calls.append(1) or once(self))
    mhca(tokens(batch=5)).square().sum().backward()
    assert len(calls) == 1
    assert mhca.position_weight.grad is not None
    assert mhca.prefix_logit.grad is not None
    assert mhca.position_weight.grad.abs().min() > 0
    assert mhca.prefix_logit.grad.abs().min() > 0


def test_positional_dropout_has_one_mask_for_the_whole_batch() -> None:
    mhca = make(position_dropout=0.5).train()
    same = tokens(batch=1).expand(3, -1, -1)
    first, second = mhca(same), mhca(same)
    torch.testing.assert_close(first[0], first[2])
    assert not torch.allclose(first[0], second[0])


def test_on_a_finer_grid_heads_keep_looking_at_the_same_part_of_the_image() -> None:
    torch.manual_seed(0)
    mhca = MHCA(Attention(5 * 4, 5), (5, 5), 1).eval()
    mhca.set_grid_size((10, 10))
    with torch.no_grad():
        by_position = mhca.position_logits()[:, 1:, 1:].view(5, 10, 10, 10, 10)
    found = [divmod(int(by_position[head, 4, 4].argmax()), 10) for head in range(5)]
    assert [(row - 4, column - 4) for row, column in found] == [
        (2 * down, 2 * right) for down, right in head_offsets(5)
    ]
    assert mhca(torch.randn(1, 101, 20)).shape == (1, 101, 20)


def test_masks_and_unknown_mixes_are_refused() -> None:
    with pytest.raises(ValueError, match="mask"):
        make()(tokens(), attn_mask=torch.zeros(1))
    with pytest.raises(ValueError, match=r"'sum'.*logits, probabilities"):
        make("sum")
