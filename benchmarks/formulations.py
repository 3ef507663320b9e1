"""Other ways to write a step of the inversion, to time beside ours: plain hooks, and the reference's formulation.

Both are written for this comparison; the compiled step is ours, in a loop of its own. A formulation is called once a
step and optimises the same batch on and on.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dearkd.specs import SynthesisSpec
from dearkd.vision.teachers import batch_norm_layers, features_and_logits
from dearkd_synth.engine.compilation import compiled
from dearkd_synth.objective.objective import Objective
from dearkd_synth.objective.terms.boundary import boundary_loss
from dearkd_synth.objective.terms.l2 import l2
from dearkd_synth.objective.terms.total_variation_l1 import total_variation_l1
from dearkd_synth.objective.terms.total_variation_l2 import total_variation_l2
from dearkd_synth.views import Views

Formulation = Callable[[], None]


class PlainHooks:
    """A frozen teacher with `var_mean` in a forward hook of every BatchNorm layer; all terms of the spec.

    Args:
        model: frozen, in eval mode; it gets hooks: give a copy.
        spec: gives the weights; what a step shows is at full resolution.
        x: (B, C, H, W), a leaf on the model's device.
        labels: (B,).
    """

    def __init__(self, model: nn.Module, spec: SynthesisSpec, x: Tensor, labels: Tensor) -> None:
        self.model, self.spec, self.x, self.labels = model, spec, x, labels
        self.optimizer = torch.optim.Adam([x], lr=spec.learning_rate)
        self.distances: list[Tensor] = []
        for number, (_, layer) in enumerate(batch_norm_layers(model)):
            weight = spec.first_batch_norm_weight if number == 0 else 1.0
            layer.register_forward_hook(self._hook(weight))

    def _hook(self, weight: float) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def keep(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            variance, mean = torch.var_mean(inputs[0].float(), dim=(0, 2, 3), correction=0)
            distance = torch.linalg.vector_norm(mean - layer.running_mean) + torch.linalg.vector_norm(
                variance - layer.running_var
            )
            self.distances.append(weight * distance)

        return keep

    def loss(self, view: Tensor) -> Tensor:
        """The weighted sum of the terms of a view (B, C, H, W)."""
        self.distances.clear()
        weights, spec = self.spec.weights, self.spec
        with torch.autocast(view.device.type, torch.bfloat16, enabled=spec.precision == "bfloat16"):
            features, logits = features_and_logits(self.model, view)
        features, logits = features.float(), logits.float()
        total = weights.cross_entropy * F.cross_entropy(logits, self.labels)
        total = total + weights.batch_norm * torch.stack(self.distances).sum()
        for weight, term in (
            (weights.total_variation_l1, total_variation_l1),
            (weights.total_variation_l2, total_variation_l2),
            (weights.l2, l2),
        ):
            if weight > 0:
                total = total + weight * term(self.x)
        if weights.boundary > 0:
            total = total + weights.boundary * boundary_loss(
                features,
                logits,
                self.labels,
                None,
                boundary_margin=spec.boundary_margin,
                similarity_margin=spec.similarity_margin,
            )
        return total

    def __call__(self) -> None:
        view = self.x.roll((1, -1), (2, 3)).flip(3).contiguous(memory_format=torch.channels_last)
        self.optimizer.zero_grad()
        self.loss(view).backward()
        self.optimizer.step()
        with torch.no_grad():
            self.x.clamp_(-3, 3)


class Reference:
    """The step as the published code writes it, with what method.md lists as flaws of its speed.

    Weights get gradients that nobody uses; each hook copies the activation (permute and contiguous) and reads it for
    the mean and again for the variance; total variation by slices; the loss is read and the best batch cloned at every
    step. It has no boundary term.

    Args: as of `PlainHooks`; the weights of `model` are set to need gradients.
    """

    def __init__(self, model: nn.Module, spec: SynthesisSpec, x: Tensor, labels: Tensor) -> None:
        self.model, self.spec, self.x, self.labels = model.requires_grad_(True), spec, x, labels
        self.optimizer = torch.optim.Adam([x], lr=spec.learning_rate)
        self.distances: list[Tensor] = []
        self.best_cost = float("inf")
        self.best = x.detach().clone()
        for _, layer in batch_norm_layers(model):
            layer.register_forward_hook(self._keep)

    def _keep(self, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0]
        mean = x.mean([0, 2, 3])
        variance = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1).var(1, unbiased=False)
        self.distances.append(
            torch.norm(layer.running_var - variance.float(), 2) + torch.norm(layer.running_mean - mean.float(), 2)
        )

    def loss(self, view: Tensor) -> Tensor:
        """Cross-entropy, statistics, total variation and L2 of a view (B, C, H, W)."""
        self.distances.clear()
        weights = self.spec.weights
        with torch.autocast(view.device.type, torch.bfloat16, enabled=self.spec.precision == "bfloat16"):
            logits = self.model(view)
        first = self.spec.first_batch_norm_weight
        statistics = sum(
            ((first if i == 0 else 1.0) * distance for i, distance in enumerate(self.distances)), torch.zeros(())
        )
        pairs = (
            view[:, :, :, :-1] - view[:, :, :, 1:],
            view[:, :, :-1, :] - view[:, :, 1:, :],
            view[:, :, 1:, :-1] - view[:, :, :-1, 1:],
            view[:, :, :-1, :-1] - view[:, :, 1:, 1:],
        )
        variation_l2 = sum((torch.norm(pair) for pair in pairs), torch.zeros(()))
        variation_l1 = sum((pair.abs().mean() for pair in pairs), torch.zeros(()))
        total: Tensor = (
            weights.cross_entropy * F.cross_entropy(logits.float(), self.labels)
            + weights.batch_norm * statistics
            + weights.total_variation_l2 / len(view) ** 0.5 * variation_l2
            + weights.total_variation_l1 * variation_l1
            + weights.l2 * torch.norm(view.reshape(len(view), -1), dim=1).mean()
        )
        return total

    def __call__(self) -> None:
        view = torch.roll(self.x, shifts=(1, -1), dims=(2, 3))
        view = torch.flip(view, dims=(3,))
        self.optimizer.zero_grad()
        self.model.zero_grad()
        loss = self.loss(view)
        cost = loss.item()
        if cost < self.best_cost:
            self.best_cost, self.best = cost, self.x.detach().clone()
        loss.backward()
        self.optimizer.step()
        for channel in range(self.x.shape[1]):
            self.x.data[:, channel] = torch.clamp(self.x.data[:, channel], -3, 3)


class Compiled:
    """Our own step with `compile` (`dearkd_synth.engine.compilation`): views and Adam as written, all between compiled.

    Args: as of `PlainHooks`; `spec` has one phase.
    """

    def __init__(self, model: nn.Module, spec: SynthesisSpec, x: Tensor, labels: Tensor) -> None:
        self.spec, self.x, self.labels = spec.model_copy(update={"compile": True}), x, labels
        self.objective = Objective(self.spec, model)
        self.optimizer = torch.optim.Adam([x], lr=spec.learning_rate, fused=True)
        self.views = Views(spec, torch.Generator().manual_seed(0))
        self.steps = 0

    def __call__(self) -> None:
        phase = self.spec.phases[0]
        view = self.views.show(self.x, phase, self.steps % phase.iterations)
        self.steps += 1
        total = self.objective.total(self.objective.losses(self.x, view, self.labels))
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.x.clamp_(-3, 3)


class CompiledBare:
    """The limit of what a compiled step can reach: the frozen teacher's forward and backward, compiled likewise.

    Args: as of `PlainHooks`.
    """

    def __init__(self, model: nn.Module, spec: SynthesisSpec, x: Tensor, labels: Tensor) -> None:
        self.x, self.labels, self.autocast = x, labels, spec.precision == "bfloat16"
        self.loss = compiled(self._loss)
        self.model = model

    def _loss(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):
            logits = self.model(x)
        return F.cross_entropy(logits.float(), self.labels)

    def __call__(self) -> None:
        torch.autograd.grad(self.loss(self.x), self.x)


FORMULATIONS: dict[str, type[PlainHooks] | type[Reference]] = {"hooks": PlainHooks, "reference": Reference}
COMPILED: dict[str, type[Compiled] | type[CompiledBare]] = {"compiled": Compiled, "compiled_bare": CompiledBare}
