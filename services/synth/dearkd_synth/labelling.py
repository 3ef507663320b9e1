"""Images that choose their labels: a batch's labels are shared out by what its images have become.

DeepInversion gives each image of noise its label before the first step. But noise is not neutral: to the teacher it
looks more like one class than another, and where the statistics weigh enough to make good images, an image keeps that
class whatever its label. So the first iterations match statistics alone, and then each image gets the label that suits
it, as far as there are enough of each: who has which label is the assignment with the largest sum of log-probabilities
(our choice [R]; benchmarks/RESULTS.md has what it is worth). A batch keeps its labels, and so its number of each class.
"""

import torch
from torch import Tensor


def share_out(labels: Tensor, logits: Tensor) -> Tensor:
    """The labels (B,) in the order in which the images fit them best.

    Args:
        labels: (B,), all that there are to give, in any order.
        logits: (B, num_classes), what the teacher says of each image; not finite counts as no opinion.

    Returns:
        (B,), a permutation of `labels`: the label of each image.
    """
    likely = torch.log_softmax(logits.double(), dim=1)[:, labels].nan_to_num(0.0, 0.0, 0.0).cpu().numpy()
    from scipy.optimize import linear_sum_assignment  # half a second, for what not every job asks for

    images, places = linear_sum_assignment(likely, maximize=True)
    shared = torch.empty_like(labels)
    shared[torch.from_numpy(images).to(labels.device)] = labels[torch.from_numpy(places).to(labels.device)]
    return shared


def in_places(labels: Tensor, shared: Tensor) -> Tensor:
    """Indices (B,) that bring images with the labels `shared` into the order of `labels`, which has as many of each."""
    order = torch.empty_like(labels)
    order[labels.argsort(stable=True)] = shared.argsort(stable=True)
    return order
