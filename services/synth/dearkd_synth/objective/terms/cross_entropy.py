"""Cross-entropy: makes the teacher predict the label."""

from torch import Tensor
from torch.nn import functional as F

from dearkd_synth.objective.term import Term, TermInputs


class CrossEntropy(Term):
    """The mean over the batch of −log p_y, p the softmax of the teacher's logits and y the label."""

    name = "cross_entropy"
    needs_labels = True

    def loss(self, inputs: TermInputs) -> Tensor:
        return F.cross_entropy(inputs.logits, inputs.labels)
