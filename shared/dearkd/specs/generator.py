"""The generator of a synthesis job."""

from pydantic import Field

from dearkd.specs.base import Spec


class GeneratorSpec(Spec):
    """A small network that images come out of: its weights are optimised, and a latent vector for each image.

    Pixels that are free show what excites the teacher alone; what such a network makes has shapes and plain grounds, as
    images have (deep image prior: Ulyanov et al., CVPR 2018). The batches of a shard share one, so that each needs few
    iterations (Fast-DFKD: Fang et al., AAAI 2022). Its size and rates are ours [R].
    """

    width: int = Field(default=32, ge=8, le=1024)
    """Channels of its first, coarsest maps."""
    latent_dim: int = Field(default=128, ge=1, le=4096)
    """Length of an image's latent vector."""
    learning_rate: float = Field(default=0.01, gt=0)
    """Adam's, of the weights; that of the latent vectors is the spec's own `learning_rate`."""
