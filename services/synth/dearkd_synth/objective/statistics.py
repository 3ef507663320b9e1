"""Matching the teacher's BatchNorm statistics, at about the cost of its forward and backward alone.

DeepInversion (Yin et al., CVPR 2020, eq. 4) compares the mean and the biased variance of every BatchNorm layer's input
over the batch with the layer's running statistics. A forward hook that computes them reads each activation twice more
going forward and three times more going back. Here the layer itself is replaced by one with its own autograd function:
in eval mode BatchNorm is an affine map with known constants, so its backward and that of the statistics are one
expression.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dearkd.errors import InvalidInput
from dearkd.vision.teacher_statistics import BatchNorm
from dearkd.vision.teachers import batch_norm_layers

Moments = tuple[Tensor, Tensor]
"""Mean and biased variance of each channel, (C,) each."""
Statistics = list[Moments]
"""The moments of each call of each matched layer, in the order of layers."""


class Earlier(NamedTuple):
    """Statistics of finished images, and the share of the current batch among all images together, in (0, 1)."""

    statistics: Statistics
    share: float | Tensor


class FrozenBatchNorm(torch.autograd.Function):
    """BatchNorm in eval mode that also gives the statistics of its input.

    For x (B, C, H, W), or with any other number of places, n = B·H·W, and the layer's constants w, b, μ̂, σ̂², ε:

        y = (x − μ̂)·w/√(σ̂² + ε) + b,    μ = Σx/n,    σ² = Σ(x − μ)²/n      (sums over B, H, W)
        ∂L/∂x = ∂L/∂y·w/√(σ̂² + ε) + (∂L/∂μ)/n + (∂L/∂σ²)·2(x − μ)/n

    Statistics are at least float32, whatever x is. The constants get no gradient: the teacher is frozen.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: "MatchedBatchNorm") -> tuple[Tensor, Tensor, Tensor]:
        # The running statistics given here are scratch: momentum 0 rewrites them with themselves, or with NaN.
        mean, variance = torch.batch_norm_update_stats(x, layer.scratch_mean, layer.scratch_var, 0.0)
        ctx.save_for_backward(x, mean, layer.scale, layer.ones)
        if addcmul_is_faster(x):
            return torch.addcmul(of_channels(layer.shift, x), x, of_channels(layer.scale, x)), mean, variance
        return layer.normalise(x), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_mean: Tensor, grad_variance: Tensor) -> tuple[Tensor, None]:
        x, mean, scale, ones = ctx.saved_tensors
        n = x.numel() // x.shape[1]
        factor, term = grad_variance * (2 / n), grad_mean / n
        if addcmul_is_faster(x):
            grad = torch.addcmul(of_channels(term.addcmul(factor, mean, value=-1), x), x, of_channels(factor, x))
        else:  # batch_norm serves as an affine map a channel that takes float32 constants with any type of x
            grad = torch.batch_norm(x, factor, term, mean, ones, False, 0.0, 0.0, False)
        return grad.addcmul_(grad_y, of_channels(scale.to(x.dtype), x)), None


def addcmul_is_faster(x: Tensor) -> bool:
    """Tell whether `addcmul` is the faster affine map a channel: a CPU needs half of `batch_norm`'s time for these."""
    last = x.ndim == 2 or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))
    return last and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def of_channels(values: Tensor, x: Tensor) -> Tensor:
    """The values (C,) in a shape that goes with x: (B, C, H, W), or (B, C) and (B, C, L) as SyncBatchNorm takes."""
    return values.view(1, -1, *[1] * (x.ndim - 2))


class MatchedBatchNorm(nn.Module):
    """Takes the place of a BatchNorm layer (timm's BatchNormAct2d included) and keeps its input's statistics.

    While `matching` is False it is the plain layer.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    scratch_mean: Tensor
    scratch_var: Tensor
    scale: Tensor
    shift: Tensor
    ones: Tensor

    def __init__(self, layer: BatchNorm) -> None:
        super().__init__()
        # What timm's BatchNormAct2d does after normalising, and plain BatchNorm has not.
        self.drop = getattr(layer, "drop", nn.Identity())
        self.act = getattr(layer, "act", nn.Identity())
        self.eps = layer.eps
        running_mean, running_var = cast(Tensor, layer.running_mean), cast(Tensor, layer.running_var)
        ones, zeros = torch.ones_like(running_var), torch.zeros_like(running_var)
        weight = ones if layer.weight is None else layer.weight.detach()
        bias = zeros if layer.bias is None else layer.bias.detach()
        scale = weight * (running_var + layer.eps).rsqrt()
        for name, tensor in {
            "weight": weight,
            "bias": bias,
            "running_mean": running_mean,
            "running_var": running_var,
            "scratch_mean": running_mean.clone(),
            "scratch_var": running_var.clone(),
            "scale": scale,
            "shift": bias - running_mean * scale,
            "ones": ones,
        }.items():
            self.register_buffer(name, tensor, persistent=False)
        self.matching = True
        self.statistics: Statistics = []
        """The moments of the input, of each call since the list was cleared."""
        self.places: list[int] = []
        """The pixels (H·W) of the input's maps, of the same calls."""

    def normalise(self, x: Tensor) -> Tensor:
        return torch.batch_norm(
            x, self.weight, self.bias, self.running_mean, self.running_var, False, 0.0, self.eps, True
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.matching:
            self.places.append(x.numel() // (x.shape[0] * x.shape[1]))
        if self.matching and torch.compiler.is_compiling():
            # The compiler fuses these with their neighbours, forward and back; into an operator it cannot look.
            variance, mean = torch.var_mean(x.float(), dim=[0, *range(2, x.ndim)], correction=0)
            self.statistics.append((mean, variance))
            y = self.normalise(x)
        elif self.matching:
            y, mean, variance = FrozenBatchNorm.apply(x, self)  # type: ignore[no-untyped-call]  # torch's gap
            self.statistics.append((mean, variance))
        else:
            y = self.normalise(x)
        return cast(Tensor, self.act(self.drop(y)))


def gaussian(mean: Tensor, variance: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
    """½(r − 1 − ln r + (μ − μ̂)²/σ̂²) with r = σ²/σ̂², of each channel: KL(batch ‖ running) of two Gaussians [R]."""
    ratio = variance / running_var
    return 0.5 * (ratio - 1 - ratio.log() + (mean - running_mean).square() / running_var)


def symmetric(mean: Tensor, variance: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
    """½(KL(batch ‖ running) + KL(running ‖ batch)) of two Gaussians, of each channel [R]."""
    ratio = variance / running_var
    apart = (mean - running_mean).square()
    return 0.25 * (ratio + 1 / ratio - 2 + apart / running_var + apart / variance)


def wasserstein(mean: Tensor, variance: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
    """((μ − μ̂)² + (σ − σ̂)²)/σ̂², of each channel: the squared 2-Wasserstein distance in the running deviation [R]."""
    apart = (mean - running_mean).square() / running_var
    return apart + ((variance / running_var).sqrt() - 1).square()


def normalised_l2(mean: Tensor, variance: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
    """(μ − μ̂)²/σ̂² + (σ²/σ̂² − 1)², of each channel: the published distance, squared, in the running deviation [R]."""
    return (mean - running_mean).square() / running_var + (variance / running_var - 1).square()


SCALE_FREE: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "gaussian": gaussian,
    "root_gaussian": gaussian,
    "symmetric": symmetric,
    "wasserstein": wasserstein,
    "normalised_l2": normalised_l2,
}
ROOTED = ("root_gaussian",)
"""Distances of which a layer counts by the root of the mean over its channels."""
NEAREST = 1e-8
"""Added under a root, so that it has a gradient where statistics match."""


class StatisticsMatching:
    """The BatchNorm layers of a teacher, and the distance of a batch's statistics from their running ones.

    Args:
        teacher: changed in place, for good: each of its BatchNorm layers is replaced. Give it a copy.
        first_weight: weight of the first layer; the others weigh 1 (10 in DeepInversion's ImageNet recipe, else 1).
        layer_weights: a further factor for each layer, in the order of registration. The statistics of a layer that
            weighs 0 are not computed. Without them layers count by the resolution of their maps, if the distance is
            scale-free, else alike.
        distance: a name in `SCALE_FREE`, or `l2`, the published one.

    Raises:
        InvalidInput: at `/batch_norm_layer_weights`, if they are not one for each layer, or no layer is left.
    """

    def __init__(
        self,
        teacher: nn.Module,
        *,
        first_weight: float = 1.0,
        layer_weights: Sequence[float] | None = None,
        distance: str = "l2",
    ) -> None:
        self._distance = SCALE_FREE.get(distance)
        self._rooted = distance in ROOTED
        self._by_resolution = layer_weights is None
        self._running: dict[tuple[tuple[int, ...], ...], tuple[Tensor, ...]] = {}
        found: dict[nn.Module, MatchedBatchNorm] = {
            layer: MatchedBatchNorm(layer) for _, layer in batch_norm_layers(teacher)
        }
        # Duplicates too: a layer that stands in two places has to be replaced in both.
        for name, module in list(teacher.named_modules(remove_duplicate=False)):
            if module in found:
                teacher.set_submodule(name, found[module])
        self.layers: Sequence[MatchedBatchNorm] = list(found.values())
        factors = [1.0] * len(self.layers) if layer_weights is None else list(layer_weights)
        if len(factors) != len(self.layers):
            raise InvalidInput.at(
                "/batch_norm_layer_weights",
                f"{len(factors)} weights, but the teacher has {len(self.layers)} BatchNorm layers: give one for each",
            )
        self.weights = [first_weight * factors[0], *factors[1:]]
        if not any(self.weights):
            raise InvalidInput.at(
                "/batch_norm_layer_weights",
                "every layer weighs 0 (first_batch_norm_weight included), so that there are no statistics to match or "
                "to judge by: leave one above it; weights.batch_norm 0 turns the term off",
            )

    def start(self, *, matching: bool = True) -> None:
        """Forget the last forward; with `matching` False the next ones collect no statistics."""
        for layer, weight in zip(self.layers, self.weights, strict=True):
            layer.matching = matching and weight > 0
        self.forget()

    def forget(self) -> None:
        """Forget the last forward."""
        for layer in self.layers:
            layer.statistics.clear()
            layer.places.clear()

    def collected(self) -> Statistics:
        """The statistics of all calls since `start`, without their graph."""
        return [(mean.detach(), variance.detach()) for layer in self.layers for mean, variance in layer.statistics]

    def first_layer_variance(self) -> float:
        """The median over channels of σ²/σ̂² in the first layer that ran since `start`."""
        layer = next(layer for layer in self.layers if layer.statistics)
        variance = layer.statistics[0][1]
        return ((variance + layer.eps) / (layer.running_var + layer.eps)).median().item()

    def loss(self, earlier: Earlier | None = None) -> Tensor:
        """The distance over the layers that ran since `start`, a float32 scalar.

        Scale-free: the mean over layers, weighted by w_l, of the means over their channels [R]; so it has the same
        size for networks of any width, depth and scale of activations. Without layer weights each resolution counts
        as much as any other, and its layers alike: else in a network of many small maps the few layers that see an
        image's texture count for nothing, and noise comes out [R]. Rooted: of the roots of these means, which, as a
        norm does, pull as much when statistics nearly match as when they are far off.

        `l2`: Σ_l w_l·(‖μ_l − μ̂_l‖₂ + ‖σ²_l − σ̂²_l‖₂) (DeepInversion, eq. 4, with norms that are not squared, as in its
        code; the weights w_l are the code's too).

        Args:
            earlier: finished images; the statistics are then those of these and the batch together, and the distance
                is divided by the batch's share, so that an image's gradient is as large, against terms that are means
                over the batch, as in one batch of all images [R].
        """
        means, variances, *running, channel_weights, sizes, shares = self._flat()
        if earlier is not None:
            before = [torch.cat(moments) for moments in zip(*earlier.statistics, strict=True)]
            means, variances = mixed((before[0], before[1]), (means, variances), earlier.share)
        if self._distance is not None:
            floor = running[2]
            distances = self._distance(means, variances + floor, running[0], running[1] + floor)
            total = _sum_of_roots(distances, sizes, shares) if self._rooted else channel_weights @ distances
        else:
            total = self._sum_of_norms(means - running[0], variances - running[1])
        return total if earlier is None else total / earlier.share

    def _flat(self) -> list[Tensor]:
        """Means and variances of all channels of all calls, and what `_running_of` gives for them."""
        calls = tuple(tuple(layer.places) for layer in self.layers)
        means, variances = zip(*(moments for layer in self.layers for moments in layer.statistics), strict=True)
        if torch.compiler.is_compiling():
            running = self._running_of()  # what is kept from step to step would be compiled anew
        else:
            running = self._running[calls] = self._running.get(calls) or self._running_of()
        return [torch.cat(means), torch.cat(variances), *running]

    def _running_of(self) -> tuple[Tensor, ...]:
        """Running moments, their ε and weights of channels; the number of channels and weight of calls."""
        layers = [layer for layer in self.layers for _ in layer.statistics]
        rows = [
            (
                layer.running_mean,
                layer.running_var,
                torch.full_like(layer.running_var, layer.eps),
                torch.full_like(layer.running_var, weight / size),
            )
            for layer, size, weight in zip(layers, *self._calls(), strict=True)
        ]
        columns = [torch.cat(column) for column in zip(*rows, strict=True)]
        sizes, weights = self._calls()
        return *columns, torch.tensor(sizes, device=columns[0].device), columns[0].new_tensor(weights)

    def _calls(self) -> tuple[list[int], list[float]]:
        """Channels and weight of each call: w_l, of a scale-free distance its share of the mean."""
        layers = [(layer, w) for layer, w in zip(self.layers, self.weights, strict=True) for _ in layer.statistics]
        sizes, weights = [len(layer.running_mean) for layer, _ in layers], [weight for _, weight in layers]
        if self._distance is None:
            return sizes, weights
        if self._by_resolution:
            places = [count for layer in self.layers for count in layer.places]
            sums = dict.fromkeys(places, 0.0)
            for count, weight in zip(places, weights, strict=True):
                sums[count] += weight
            weights = [weight / sums[count] for count, weight in zip(places, weights, strict=True)]
        total = sum(weights)
        return sizes, [weight / total for weight in weights]

    def _sum_of_norms(self, means: Tensor, variances: Tensor) -> Tensor:
        """Σ_l w_l·(‖·‖₂ + ‖·‖₂) of differences of means and variances."""
        sizes, weights = self._calls()
        norms = [
            weight * (torch.linalg.vector_norm(mean) + torch.linalg.vector_norm(variance))
            for weight, mean, variance in zip(weights, means.split(sizes), variances.split(sizes), strict=True)
        ]
        return torch.stack(norms).sum()


def _sum_of_roots(distances: Tensor, sizes: Tensor, shares: Tensor) -> Tensor:
    """The mean over calls, weighted by their shares, of the root of the mean over channels."""
    # Unsafe: without a look at the sizes, for which the host would wait for a GPU.
    means = torch.segment_reduce(distances, "mean", lengths=sizes, unsafe=True)
    return (means + NEAREST).sqrt() @ shares


def mixed(one: Moments, other: Moments, share: float | Tensor) -> Moments:
    """Mean and biased variance of the union of two sets of values; `share`, in (0, 1), is the second set's part."""
    mean = torch.lerp(one[0], other[0], share)
    between = [(moments[1] + (moments[0] - mean).square()) for moments in (one, other)]
    return mean, torch.lerp(between[0], between[1], share)
