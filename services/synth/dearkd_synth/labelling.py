"""Late labels: a batch's labels are assigned to the images that already fit them best.

DeepInversion gives each image of noise its label before the first step. But noise is not neutral: to the teacher it
looks more like one class than another, and where the statistics weigh enough to make good images, an image keeps that
class whatever its label. So the first iterations match statistics alone, and then the labels are distributed by the
assignment with the largest sum of log-probabilities (our choice [R]; benchmarks/RESULTS.md measures its effect). A
batch as a whole keeps its labels, and so its number of images of each class.
"""

import torch
from torch import Tensor


def assign_labels(labels: Tensor, logits: Tensor) -> Tensor:
    """Assign the labels of a batch to its images so that the sum of log-probabilities is largest.

    Args:
        labels: (B,), class indices, in any order.
        logits: (B, num_classes), the teacher's for each image; a log-probability that is not finite counts as 0.

    Returns:
        (B,), a permutation of `labels`: the label of each image.
    """
    likely = torch.log_softmax(logits.double(), dim=1)[:, labels].nan_to_num(0.0, 0.0, 0.0).cpu().numpy()
    from scipy.optimize import linear_sum_assignment  # half a second, for what not every job asks for

    images, places = linear_sum_assignment(likely, maximize=True)
    shared = torch.empty_like(labels)
    shared[torch.from_numpy(images).to(labels.device)] = labels[torch.from_numpy(places).to(labels.device)]
    return shared


def restore_order(labels: Tensor, shared: Tensor) -> Tensor:
    """Indices (B,) that sort images labelled `shared` (B,) into the order of `labels` (B,), a permutation of it."""
    order = torch.empty_like(labels)
    order[labels.argsort(stable=True)] = shared.argsort(stable=True)
    return order
