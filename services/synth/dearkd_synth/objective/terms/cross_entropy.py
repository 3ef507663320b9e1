"""Cross-entropy: the teacher gives an image its label."""

from torch import Tensor
from torch.nn import functional as F

from dearkd_synth.objective.term import Seen, Term


class CrossEntropy(Term):
    """The mean over the batch of −log p_y, p the softmax of the teacher's logits and y the label."""

    name = "cross_entropy"
    needs_labels = True

    def loss(self, seen: Seen) -> Tensor:
        return F.cross_entropy(seen.logits, seen.labels)
