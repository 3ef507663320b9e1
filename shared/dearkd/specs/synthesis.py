"""The complete spec of a synthesis job, and what follows from it by arithmetic: images, shards, teacher passes."""

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from dearkd.choices import PresetName
from dearkd.specs.base import FIRST_ERROR, MAX_RETRIES, Labels, Limits, Name, Precision, Priority, Spec
from dearkd.specs.budget import BudgetSpec
from dearkd.specs.cuts import sample_bytes, thinnest_batch
from dearkd.specs.forecasting import forecast_rounds, groups_with_forecasts
from dearkd.specs.generator import GeneratorSpec
from dearkd.specs.resources import ResourcesSpec
from dearkd.specs.rounds import Rounds
from dearkd.specs.teacher import TeacherSpec
from dearkd.specs.terms import with_plugged_in
from dearkd.specs.webhook import WebhookSpec

EARLIER_NAMES = {"imagenet": "published-imagenet", "cifar": "published-cifar", "digits": "auto"}
"""Presets as they were called before `auto`."""

Preset = Annotated[
    PresetName,
    BeforeValidator(lambda name: EARLIER_NAMES.get(name, name) if isinstance(name, str) else name),
]


class Phase(Spec):
    """One resolution of the optimisation; between phases the tensor is upsampled bilinearly."""

    resolution: int = Field(ge=4, le=4096)
    """Side of the optimised tensor, in pixels."""
    input_size: int = Field(ge=8, le=4096)
    """Side of what the teacher sees; the tensor is upsampled to it inside the graph."""
    iterations: int = Field(ge=1)


@with_plugged_in
class SynthesisWeights(Spec):
    """Weights of the objective's terms (method.md, section 1); 0 means that the term is not computed at all.

    The fields here are those that presets weigh; any other term that plugs in has one too, and weighs 0 by default.
    """

    cross_entropy: float = Field(ge=0)
    batch_norm: float = Field(ge=0)
    total_variation_l1: float = Field(ge=0)
    total_variation_l2: float = Field(ge=0)
    l2: float = Field(ge=0)
    adaptive: float = Field(ge=0)
    """The published 0.2 does not carry over. Beside strong `l2` statistics of digits 30 made better students; beside
    weaker ones more than 2 made worse (benchmarks/RESULTS.md, LOG.md)."""
    boundary: float = Field(ge=0)
    """Refused, and 0 by default, where the cuts leave a batch with one image of each class and none made before."""


class SynthesisSpec(Spec):
    """Everything that decides the images of a dataset. Those defaults that depend on the teacher are the presets'."""

    teacher: str
    preset: Preset
    images_per_class: int = Field(ge=1)
    classes: Annotated[list[int], FIRST_ERROR] = Field(min_length=1)
    batch_size: int = Field(ge=1, le=65536)
    classes_per_batch: int = Field(ge=1)
    """P of the P×K batches; K is batch_size / classes_per_batch."""
    phases: Annotated[list[Phase], FIRST_ERROR] = Field(min_length=1, max_length=16)
    generator: GeneratorSpec | None = None
    """A small network that images come out of, trained on by each batch of a shard; null: pixels are optimised [P].
    A preset that has one leaves it away beside what is of pixels (`learning_rate`, several `phases`, `init`,
    `init_std`, `pyramid_levels`, `clip`), unless it is asked for."""
    learning_rate: float = Field(gt=0)
    """Adam's, in the normalised space of the teacher's input; with a `generator`, of its latent vectors."""
    pyramid_levels: int = Field(default=1, ge=1, le=6)
    """Resolutions at which Adam moves the images at once, each half the one before; 1: their own alone [P]. With more,
    what is coarse comes first, which few iterations need [R] (`dearkd_synth.engine.pyramid`)."""
    betas: Annotated[list[float], FIRST_ERROR] = Field(min_length=2, max_length=2)
    schedule: Literal["constant", "cosine"]
    warmup_iterations: int = Field(ge=0)
    weights: SynthesisWeights
    statistics: Literal["l2", "gaussian", "root_gaussian", "symmetric", "wasserstein", "normalised_l2"] = "l2"
    """Distance of a batch's statistics from the running ones: `l2` as published [P], with the scale of the network; the
    others, relative to the running deviation, mean the same for every network [R]
    (`dearkd_synth.objective.statistics`)."""
    first_batch_norm_weight: float = Field(ge=0)
    """Weight of the first BatchNorm layer's statistics; the others weigh 1."""
    batch_norm_layer_weights: Annotated[list[Annotated[float, Field(ge=0)]], FIRST_ERROR] | None = None
    """A further factor for the statistics of each BatchNorm layer, in the teacher's order; 0 leaves a layer out. With
    none, `l2` is the sum over all layers [P]; of the other distances each resolution of maps counts alike [R]."""
    statistics_memory: int = Field(default=0, ge=0)
    """A batch is matched to the statistics together with up to so many images that its shard already holds [R]; 0 is
    DeepInversion's way, each batch for itself."""
    init_std: float = Field(default=1.0, gt=0, le=10)
    """Standard deviation of the noise that images begin from, at each of the pyramid's levels, in the normalised space
    of the teacher's input; 1 as published [P]. What begins from earlier images has noise of its own."""
    init: Literal["noise", "earlier_batch"] = "noise"
    """The beginning of a batch: noise [P], or the images of the batch before it in its shard, each moved a little, with
    some noise over it, and with their labels from the first step [R] (`dearkd_synth.initialisation`). The latter
    makes far better images of 20 iterations, and of 200 ones that teach less than noise's (docs/measured.md)."""
    unlabelled_iterations: int = Field(default=0, ge=0)
    """Iterations, counted over all phases, in which a batch only matches statistics and priors; then its images share
    out the batch's labels among themselves by what they have become (`dearkd_synth.labelling`) [R]. 0 is
    DeepInversion's way: noise has its label from the beginning."""
    adaptive_student: str | None = None
    """Id of the model that the adaptive term competes with: of the teacher's classes and channels. With none named, a
    small CNN is trained for it on the job's first shards."""
    adaptive_every: int | None = Field(default=None, ge=2)
    """Every so-many-th shard (0, n, 2n, …) is made first, without the adaptive term; the job's student is trained on
    them, and the other shards compete with it [R]. Only where such a student is trained; the default lies between 2 and
    10, so that each group of classes has a shard among them where it has two or more."""
    adaptive_iterations: int = Field(default=300, ge=1)
    """Steps of that student's training, of `batch_size` images each [R]."""
    boundary_margin: float = 1.0
    """τ [R]: a sample counts as well inside its class if its logit leads the next by more than this."""
    similarity_margin: float = Field(default=0.3, ge=-1, le=1)
    """m [R]: a cosine similarity to the easy positive that is not punished any more."""
    jitter: int = Field(ge=0)
    """Random roll, up to this many pixels at `input_size`, in both directions and both axes."""
    flip: float = Field(ge=0, le=1)
    """Probability of a horizontal flip at each step; 0 where mirrored objects are other objects (digits, text)."""
    clip: bool = True
    """Clip to the valid pixel range after every step."""
    crop_min_scale: float = Field(default=1.0, gt=0, le=1)
    """Crop curriculum (CDA): the smallest share of the area that a random crop shows falls from 1 at the first step to
    this at the last; 1 crops nothing. Published: 0.08."""
    divergence_factor: float = Field(default=100.0, gt=1)
    """A batch has diverged if its loss is not finite, or more than so many times the first step's, to which the sum of
    the weights is added for terms that begin at 0 [R]."""
    max_restarts: int = Field(default=3, ge=0, le=20)
    """The most times that a batch that has diverged starts again from its seed [R]."""
    restart_rate_factor: float = Field(default=0.25, gt=0, lt=1)
    """The factor on the learning rate at each restart [R]."""
    min_teacher_accuracy: float = Field(default=0.5, ge=0, le=1)
    """The share of the first shard's images that the teacher has to give their label: below it the job ends with
    `poor_images`, and no more are made [R]. 0 takes whatever comes out."""
    halve_batches: bool = False
    """True if a batch that the device has no memory for is made in halves; its images differ from a larger device's."""
    precision: Precision = "float32"
    """The precision of the teacher's forward and backward; statistics and losses are always float32."""
    compile: bool = False
    """True if teacher, losses and backward go through torch.compile, which rounds differently and compiles anew for
    each phase and batch size. Needs a C++ compiler where the job runs; on a GPU, Triton and a C compiler."""
    shard_samples: int = Field(ge=1)
    """The default holds whole class groups, or an even share of one where it can (`cuts`)."""
    rounds: int = Field(default=1, ge=1)
    """The images are made in so many rounds, one after the other, of equally many images of each class (to within one);
    no shard holds images of two. A job that may end early makes several."""
    budget: BudgetSpec | None = None
    """The most that the job may cost, of which images, iterations and rounds followed; null: settings alone say."""
    image_format: Literal["png", "webp", "jpeg"] = "png"
    store_logits: bool = False
    """True if the teacher's logits of its stored pixels are saved with each sample (`.logits.npy`, half precision)."""
    parallelism: int = Field(default=1, ge=1, le=1024)
    """The most workers that may work on the job at once."""
    priority: Priority = "normal"
    resources: ResourcesSpec | None = None
    """The worker that the job needs; null: any."""
    timeout_seconds: float | None = Field(default=None, gt=0)
    """Seconds of running, without what it waited or was paused, after which it fails (`timed_out`, retryable); of all
    automatic tries together."""
    max_retries: int = Field(default=0, ge=0, le=MAX_RETRIES)
    """The most times that it is tried again by itself after a failure that is `retryable`: from what it had made, 10 s
    later, then 20 s, and so on, up to six minutes. A retry on request counts anew."""
    labels: Labels = Field(default={})
    """Texts of your own, by which jobs are found again: `?labels=team=vision`."""
    webhook: WebhookSpec | None = None
    """Whom the job tells of its steps."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    name: Name | None = Field(default=None, max_length=200)

    @classmethod
    def resolve(
        cls,
        posted: Any,
        teacher: TeacherSpec,
        limits: Limits | None = None,
        *,
        refused_input_sizes: Collection[int] = (),
    ) -> "SynthesisSpec":
        """Check a JSON object as a `SynthesisRequest` and complete it.

        Raises:
            InvalidInput: with a pointer for every field that is unknown, of the wrong type or out of range, alone or
                together with the others.
        """
        from dearkd.specs.synthesis_request import SynthesisRequest  # which is made of this class

        request = SynthesisRequest.check(posted)
        return request.complete(teacher, limits, refused_input_sizes=refused_input_sizes)

    @property
    def num_samples(self) -> int:
        return self.images_per_class * len(self.classes)

    @property
    def num_shards(self) -> int:
        return self.cut_in_rounds.shards_before(self.rounds)

    @property
    def cut_in_rounds(self) -> Rounds:
        return Rounds(
            count=self.rounds,
            classes=len(self.classes),
            images_per_class=self.images_per_class,
            classes_per_batch=self.classes_per_batch,
            shard_samples=self.shard_samples,
        )

    @property
    def may_end_early(self) -> bool:
        """Tell whether the job may end behind any complete round."""
        return self.rounds > 1 and self.budget is not None and self.budget.ends_early

    @property
    def forecasts(self) -> list[int]:
        """The numbers of rounds after which a forecast is made; none without a budget."""
        cut = self.rounds, self.cut_in_rounds.samples_before(1), self.iterations
        return [] if self.budget is None else forecast_rounds(*cut)

    @property
    def least_samples(self) -> int:
        """The samples that are made at least: those of the first round where the job may end early, else all."""
        return self.cut_in_rounds.samples_before(1) if self.may_end_early else self.num_samples

    def shard_lengths(self) -> list[int]:
        """Samples of each shard; only the last of a round may be short."""
        return [len(self.cut_in_rounds.samples_of(shard)) for shard in range(self.num_shards)]

    @property
    def iterations(self) -> int:
        """Steps of an image, over all phases."""
        return sum(phase.iterations for phase in self.phases)

    @property
    def teacher_passes(self) -> int:
        """Forward and backward passes of single images through the teacher, over the whole job, whatever their size."""
        return self.num_samples * self.iterations

    @property
    def student_shards(self) -> range:
        """The shards that the job's own student is trained on; empty where it trains none."""
        return range(0, self.num_shards, self.adaptive_every) if self.adaptive_every else range(0)

    @property
    def student_passes(self) -> int:
        """Forward passes of single images through the teacher, alone, in the training of the job's own student."""
        return self.adaptive_iterations * self.batch_size if self.adaptive_every else 0

    @property
    def units(self) -> list[list[str]]:
        """Names of the job's units of work, in groups of which each begins when the one before it is done.

        The shards (`"0"`, `"1"`, …), and then `"finish"`, which writes the manifest. Where a student is trained, the
        shards that it learns from come first, then `"student"`. Behind 2, 4, … rounds of shards there may be
        `"forecast-2"`, `"forecast-4"`, …
        """
        shards, first = range(self.num_shards), self.student_shards
        if first:
            rest = [shard for shard in shards if shard not in first]
            return [[*map(str, first)], ["student"], [*map(str, rest)], ["finish"]]
        ends = {number: self.cut_in_rounds.shards_before(number) for number in self.forecasts}
        return [*groups_with_forecasts(len(shards), ends), ["finish"]]

    def competes(self, shard: int) -> bool:
        """Tell whether the adaptive term takes part in a shard."""
        return self.weights.adaptive > 0 and shard not in self.student_shards

    def estimated_bytes(self, teacher: TeacherSpec) -> int:
        """Bytes of all shards: pixels as they are (synthetic images compress little), JSON, label, tar headers."""
        return self.num_samples * sample_bytes(teacher, logits=self.store_logits)

    def cut(self) -> dict[str, int]:
        """The arguments of the functions in `cuts`, but for the size of shards."""
        classes = len(self.classes)
        return {
            "classes": classes,
            "images_per_class": self.images_per_class,
            "classes_per_batch": min(self.classes_per_batch, classes),
            "batch_size": self.batch_size,
        }

    def has_lone_batch(self) -> bool:
        """Tell whether some batch has no two images of a class, and none of its classes had images before it."""
        cut = self.cut_in_rounds
        return any(
            thinnest_batch(**self.cut() | {"images_per_class": size}, shard_samples=cut.shard_length(size)) <= 1
            for size in cut.sizes()
        )
