"""Time of a transformer block with MHCA over that of timm's plain block, in training and in inference.

    python benchmarks/mhca.py --json
    python benchmarks/mhca.py --grid 4 --embed-dim 128 --num-heads 4 --batch-size 128
    python benchmarks/mhca.py --mix probabilities

Both run in turn, step by step, in one process, so that a noisy machine slows both alike; the medians are compared. The
defaults are DearKD-Ti's block at 224 px: 14×14 patch tokens and two others.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import dearkd.vision  # noqa: F401  # makes timm importable

# isort: split
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from dearkd_trainer.model.mhca import MHCA

PREFIX_TOKENS = 2


def build(arguments: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    """A plain block, and one with MHCA."""
    torch.manual_seed(0)
    plain, local = (Block(arguments.embed_dim, arguments.num_heads, qkv_bias=True) for _ in range(2))
    local.attn = MHCA(local.attn, (arguments.grid, arguments.grid), PREFIX_TOKENS, mix=arguments.mix)
    return plain.to(arguments.device), local.to(arguments.device)


def train(block: nn.Module, x: Tensor) -> None:
    block.zero_grad(set_to_none=True)
    block(x).sum().backward()


@torch.no_grad()
def infer(block: nn.Module, x: Tensor) -> None:
    block(x)


def compare(
    run: Callable[[nn.Module, Tensor], None], blocks: tuple[nn.Module, nn.Module], x: Tensor, steps: int
) -> Any:
    seconds: tuple[list[float], list[float]] = ([], [])
    for step in range(steps + 3):
        for block, times in zip(blocks, seconds, strict=True):
            began = now(x)
            run(block, x)
            if step >= 3:
                times.append(now(x) - began)
    plain, local = (statistics.median(times) for times in seconds)
    return {
        "plain_milliseconds": round(plain * 1000, 3),
        "mhca_milliseconds": round(local * 1000, 3),
        "ratio": round(local / plain, 3),
    }


def now(x: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    plain, local = build(arguments)
    tokens = PREFIX_TOKENS + arguments.grid**2
    x = torch.randn(arguments.batch_size, tokens, arguments.embed_dim, device=arguments.device, requires_grad=True)
    return {
        "mix": arguments.mix,
        "tokens": tokens,
        "embed_dim": arguments.embed_dim,
        "num_heads": arguments.num_heads,
        "batch_size": arguments.batch_size,
        "device": torch.cuda.get_device_name() if x.is_cuda else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "steps": arguments.steps,
        "training": compare(train, (plain.train(), local.train()), x, arguments.steps),
        "inference": compare(infer, (plain.eval(), local.eval()), x, arguments.steps),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mix", default="logits", choices=["logits", "probabilities"])
    parser.add_argument("--grid", type=int, default=14, help="rows and columns of patch tokens")
    parser.add_argument("--embed-dim", type=int, default=192)
    parser.add_argument("--num-heads", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = measure(arguments)
    if arguments.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name:>12}  {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
