"""The watch over a job's first shard: bad images are told with what to change, before many of them are made."""

from dearkd.errors import PoorImages
from dearkd.specs import SynthesisSpec
from dearkd_synth.synthesised import SynthesisedShard

FLAT = 0.04
"""Standard deviation of an image's pixels, in [0, 1], below which the eye sees one grey [our choice]. Of real digits,
clothes, photographs and glyphs it is 0.1 and more."""
MAX_RATIO = 8.0
"""The most that the variance at the first BatchNorm layer is off from the teacher's own, either way [our choice]."""


def warnings(shard: SynthesisedShard) -> list[str]:
    """Signs that the teacher was trained on pixels of another normalisation than its `mean` and `std` say.

    Images that are optimised to look right to it then are nearly of one grey, or cannot reach its statistics within the
    range of pixels. The teacher may well give them their labels.
    """
    found = []
    contrast = (shard.images.float() / 255).std(dim=(1, 2, 3), correction=0).median().item()
    if contrast < FLAT:
        found.append(f"the images are nearly of one grey (their pixels deviate by {contrast:.3f} of 1)")
    ratio = sum(batch.first_layer_variance * len(batch.labels) for batch in shard.batches) / len(shard.labels)
    if not 1 / MAX_RATIO < ratio < MAX_RATIO:
        found.append(f"the first BatchNorm layer sees {ratio:.2g} times the variance that the teacher was trained with")
    return [f"{sign}: were its training images normalised with the mean and std that it says?" for sign in found]


def require_good(shard: SynthesisedShard, spec: SynthesisSpec) -> None:
    """Refuse a shard of which the teacher gives too few images their label.

    Raises:
        PoorImages: naming the share, `min_teacher_accuracy`, signs of a cause and what to change.
    """
    share = (shard.predicted == shard.labels).double().mean().item()
    if share >= spec.min_teacher_accuracy:
        return
    causes = warnings(shard) or [
        "more iterations (phases), a larger weights.cross_entropy or a lower learning_rate may help"
    ]
    raise PoorImages(
        f"the teacher gives {share:.0%} of the first {len(shard.labels)} images the label that they were made for, and "
        f"min_teacher_accuracy is {spec.min_teacher_accuracy:g}; no more were made. {'; '.join(causes)}. The preview "
        "shows them; with min_teacher_accuracy 0 a job goes on whatever comes out"
    )
