"""Fine-tuning: a student that begins with the weights of a trained one."""

import copy

import torch

from dearkd.errors import InvalidInput
from dearkd_trainer.student import DearKDViT


@torch.no_grad()
def begin_from(student: DearKDViT, initial: DearKDViT) -> None:
    """Give a student another one's weights: resampled to its resolution, without the heads where classes differ.

    Args:
        student: whose weights are replaced.
        initial: of the same dimensions; not changed.

    Raises:
        InvalidInput: naming the weights that one of them lacks, or that are of another shape.
    """
    resampled = copy.deepcopy(initial)
    resampled.set_input_size(img_size=student.patch_embed.img_size)
    theirs, ours = resampled.state_dict(), student.state_dict()
    if initial.num_classes != student.num_classes:
        heads = {name for name in ours if name.startswith(("head.", "head_dist."))}
        theirs = {name: weight for name, weight in theirs.items() if name not in heads}
        theirs |= {name: ours[name] for name in heads}
    differing = [
        name
        for name in sorted({*theirs, *ours})
        if name not in theirs or name not in ours or theirs[name].shape != ours[name].shape
    ]
    if differing:
        raise InvalidInput.at(
            "/init",
            f"the model to begin from is of other dimensions: {', '.join(differing[:5])}"
            + (f" and {len(differing) - 5} other weights differ" if len(differing) > 5 else " differ"),
        )
    student.load_state_dict(theirs)
