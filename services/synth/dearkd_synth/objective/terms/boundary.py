"""The boundary-preserving intra-divergence loss L_bpid (DearKD, CVPR 2022), as reconstructed in docs/method.md.

Published is its purpose: keep the easy positives apart from the others of their class in the teacher's latent space,
so that the class spreads, and leave alone the hard samples, which lie near a class boundary, so that no image is pushed
out of its class. The form is our reconstruction [R], in the terms of easy-positive mining (Xuan et al., WACV 2020).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from dearkd_synth.objective.term import FinishedBatch, Term, TermInputs


class Boundary(Term):
    """L_bpid among the images of a batch and the finished ones of its shard (`boundary_loss`)."""

    name = "boundary"
    needs_labels = True

    def begin_shard(self) -> None:
        self._bank = FeatureBank()
        self._earlier: tuple[Tensor, Tensor] | None = None

    def begin_phase(self, phase: int, labels: Tensor) -> None:
        self._earlier = self._bank.of(labels, multiple_of=self.spec.shard_samples if self.spec.compile else 1)

    def loss(self, inputs: TermInputs) -> Tensor:
        return boundary_loss(
            inputs.features,
            inputs.logits,
            inputs.labels,
            self._earlier,
            boundary_margin=self.spec.boundary_margin,
            similarity_margin=self.spec.similarity_margin,
        )

    def keep(self, batch: FinishedBatch) -> None:
        self._bank.add(batch.features, batch.labels)


class FeatureBank:
    """Features of the images that a shard already holds: candidates for positives, so that its tenth batch does not
    repeat the first."""

    def __init__(self) -> None:
        self._features: list[Tensor] = []
        self._labels: list[Tensor] = []

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Keep the features (N, D) of images with these labels (N,)."""
        self._features.append(F.normalize(features.detach().float(), dim=1))
        self._labels.append(labels)

    def of(self, labels: Tensor, *, multiple_of: int = 1) -> tuple[Tensor, Tensor] | None:
        """L2-normalised features (M, D) and labels (M,) of all kept images of these classes; None if nothing is kept.

        Args:
            labels: (N,), the classes; may repeat.
            multiple_of: M is padded to a multiple of it by images of no class (label −1), because a compiled step is
                compiled anew for each M.
        """
        if not self._labels:
            return None
        features, kept = torch.cat(self._features), torch.cat(self._labels)
        wanted = torch.isin(kept, labels)
        features, kept = features[wanted], kept[wanted]
        more = -len(kept) % multiple_of
        if multiple_of > 1 and not len(kept):
            more = multiple_of
        return F.pad(features, (0, 0, 0, more)), F.pad(kept, (0, more), value=-1)


def boundary_loss(
    features: Tensor,
    logits: Tensor,
    labels: Tensor,
    earlier: tuple[Tensor, Tensor] | None = None,
    *,
    boundary_margin: float,
    similarity_margin: float,
) -> Tensor:
    """L_bpid = mean_i w_i · max(0, s(f_i, sg f_EP(i)) − m), a scalar.

    f are the L2-normalised features, s the cosine similarity, sg the stop-gradient; EP(i) is the most similar other
    sample of i's class, in the batch or among the earlier ones; w_i is 1 if z_{y_i} − max_{k≠y_i} z_k > τ, else 0. A
    sample near the boundary (w_i = 0), or without a positive, gets a gradient of exactly zero. Near-duplicates stay
    candidates: they are the collapse that the loss exists to undo.

    Args:
        features: (B, D), the teacher's pooled penultimate features.
        logits: (B, num_classes), z.
        labels: (B,), y.
        earlier: L2-normalised features (M, D) and labels (M,) of images already made.
        boundary_margin: τ.
        similarity_margin: m.
    """
    f = F.normalize(features, dim=1)
    with torch.no_grad():
        candidates, classes = f, labels
        if earlier is not None:
            candidates, classes = torch.cat([f, earlier[0]]), torch.cat([labels, earlier[1]])
        positive = labels[:, None] == classes
        positive.fill_diagonal_(False)
        similarity = (f @ candidates.T).masked_fill(~positive, -torch.inf)
        easiest = candidates[similarity.argmax(dim=1)]
        inside = logit_margin(logits, labels) > boundary_margin
        weight = (inside & positive.any(dim=1)).to(f.dtype)
    return (weight * F.relu((f * easiest).sum(dim=1) - similarity_margin)).mean()


def logit_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """z_{y_i} − max_{k≠y_i} z_k (B,) of logits (B, num_classes): positive where the label is also the prediction."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return own[:, 0] - others.amax(dim=1)
