"""The complete spec of a training run: student, two stages, optimiser, augmentation."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from dearkd.choices import Recipe
from dearkd.specs.auto_augment import check_auto_augment
from dearkd.specs.base import FIRST_ERROR, MAX_RETRIES, Labels, Name, Precision, Priority, Spec
from dearkd.specs.dataset_facts import DatasetFacts
from dearkd.specs.resources import ResourcesSpec
from dearkd.specs.teacher import TeacherSpec
from dearkd.specs.webhook import WebhookSpec

Fraction = Annotated[float, Field(ge=0, le=1)]


class StudentSpec(Spec):
    """A DearKD-ViT. `mhca_blocks` is the number of early blocks with MHCA; 0 is a plain ViT."""

    architecture: str
    image_size: int = Field(ge=8, le=4096)
    patch_size: int = Field(ge=1)
    embed_dim: int = Field(ge=8, le=8192)
    depth: int = Field(ge=1, le=200)
    num_heads: int = Field(ge=1, le=256)
    mhca_blocks: int = Field(ge=0)
    drop_path_rate: float = Field(ge=0, lt=1)
    distilled: bool
    """True if the student has a distillation token beside its class token."""
    mhca_mix: Literal["logits", "probabilities"] = "logits"
    """The way MHCA joins content and position: one softmax over their sum, or the mean of two softmaxes [R]."""
    mhca_locality: float = Field(default=1.0, gt=0)
    """The narrowness of MHCA at the start: a Gaussian over token distances δ, exp(-mhca_locality·‖δ-Δ‖²) [R]."""
    mhca_dropout: float = Field(default=0.1, ge=0, lt=1)
    """The dropout rate of MHCA's positional logits, against attention that stays too local [R]."""


class StageOneWeights(Spec):
    classification: float = Field(ge=0)
    distillation: float = Field(ge=0)
    hidden: float = Field(ge=0)


class PairSpec(Spec):
    """A student block whose patch tokens learn to foretell a feature map of the teacher."""

    block: int = Field(ge=0)
    """Counted from 0."""
    stage: int = Field(ge=0)
    """Index in timm's `forward_intermediates` of the teacher; 0 is the finest."""


class StageOneSpec(Spec):
    """Distillation from the teacher's logits and early features. A weight of 0 means that the term is not computed."""

    epochs: int = Field(ge=0)
    distillation: Literal["hard", "soft", "none"]
    temperature: float = Field(gt=0)
    """The temperature of soft distillation, whose KL is multiplied by its square."""
    weights: StageOneWeights
    teacher_logits: Literal["computed", "stored"] = "computed"
    """`stored`: those beside the images are learnt from, and the teacher is not asked. They are of unchanged pixels, so
    nothing augments those then, and no features are learnt."""
    pairs: Annotated[list[PairSpec], FIRST_ERROR] | None = Field(default=None, min_length=1, max_length=1000)
    """Pairs of layers that the hidden term compares; None: the teacher's early stages by stride, and MHCA [R]."""


class StageTwoSpec(Spec):
    """Classification alone: the teacher is gone."""

    epochs: int = Field(ge=0)
    distillation: Literal["none"]
    schedule: Literal["continues", "restarts"] = "continues"
    """The learning rate's schedule: one cosine over both stages (`continues`), or a cosine for each stage, the second
    without warm-up (`restarts`) [R]."""
    lr: float | None = Field(default=None, gt=0)
    """The first learning rate of a schedule that restarts; None: `optimizer.lr` [R]."""


class OptimizerSpec(Spec):
    """timm's names. `lr` is the value used, already scaled to the batch."""

    opt: Literal["adamw", "sgd", "lamb", "adam"]
    lr: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    sched: Literal["cosine"]
    warmup_epochs: float = Field(ge=0)
    warmup_lr: float = Field(ge=0)
    min_lr: float = Field(ge=0)
    clip_grad: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient."""
    model_ema_half_life: float | None = Field(default=None, gt=0)
    """In epochs; with one set, the averaged weights are evaluated and exported. None: no averaging."""
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    """The ratio of a block's learning rate to the next block's, for fine-tuning (BEiT: 0.65–0.75). None: one rate."""


class AugmentationSpec(Spec):
    """timm's names for its transforms and Mixup; torchvision's for the affine part."""

    scale: Annotated[list[float], FIRST_ERROR] = Field(min_length=2, max_length=2)
    """Range of the random crop's area; [1, 1] crops nothing."""
    ratio: Annotated[list[float], FIRST_ERROR] = Field(min_length=2, max_length=2)
    hflip: Fraction | None
    """Probability of a mirrored view. None, where a teacher is used: 0.5 if it answers mirrored training images as it
    does the others, 0 if it does not; measured before the first step [our choice]."""
    aa: Annotated[str, Field(max_length=200), AfterValidator(check_auto_augment)] | None = None
    """RandAugment and its kin, in timm's notation; where set, colour jitter is off."""
    color_jitter: float = Field(ge=0)
    reprob: Fraction
    mixup: float = Field(ge=0)
    cutmix: float = Field(ge=0)
    smoothing: float = Field(ge=0, lt=1)
    aug_repeats: int = Field(ge=0, le=16)
    degrees: float = Field(ge=0, le=180)
    translate: Fraction
    shear: float = Field(ge=0, lt=90)


class TrainingSpec(Spec):
    """Everything that decides a run. Those defaults that depend on the images are the recipes'."""

    dataset: str
    """A dataset's id, or that of the synthesis job which makes it; kept as posted."""
    fraction: float = Field(default=1.0, gt=0, le=1)
    """The fraction of each class's images that is used, in (0, 1]."""
    teacher: str | None = None
    init: str | None = None
    """A stored model's id, whose weights the student begins with, for fine-tuning. It is of that model's dimensions; to
    another image size they are resampled, and for another number of classes it gets new heads."""
    recipe: Recipe
    student: StudentSpec
    stage_one: StageOneSpec
    stage_two: StageTwoSpec
    optimizer: OptimizerSpec
    augmentation: AugmentationSpec
    batch_size: int = Field(ge=1, le=1_000_000)
    """Global: the sum over all processes and over the parts of `grad_accum_steps`."""
    shuffle_shards: int | None = Field(default=None, ge=1, le=100_000)
    """The number of shards whose samples are shuffled together, for a dataset larger than the workers' cache.
    An epoch takes the shards in a random order. The cache must hold twice as many shards, or three times with several
    processes. Few shards mix badly if each holds few classes, as in synthetic datasets. None: all samples are shuffled
    together, and the cache must hold them all."""
    grad_accum_steps: int = Field(default=1, ge=1, le=1024)
    """Parts in which each process computes the gradient of its share of the batch, where that does not fit into memory
    at once. The result is the same up to the order of sums, but for dropout and drop-path, which differ."""
    processes: int = Field(default=1, ge=1, le=1024)
    """Processes that share each batch. With `engine` `ray` the most: as many take part as find room in the cluster."""
    engine: Literal["local", "ray"] = "local"
    """`local`: the processes run on one worker's machine; `ray`: on the nodes of a Ray cluster, if the server has one
    (DEARKD_RAY_ADDRESS)."""
    precision: Precision = "float32"
    holdout: float = Field(default=0.05, ge=0, lt=1)
    """Part of the training images on which `best` is chosen; they are not trained on [R]."""
    eval_dataset: str | None = None
    eval_every: int = Field(default=5, ge=1)
    """Epochs between evaluations; the last epoch is always evaluated."""
    checkpoint_every: int = Field(default=5, ge=1)
    """Epochs between checkpoints."""
    checkpoint_seconds: float = Field(default=900.0, gt=0)
    """Within an epoch too a checkpoint is made, once the last one is this old [our choice]."""
    keep_checkpoints: int = Field(default=1, ge=1, le=100)
    """The number of last checkpoints that are kept, beside the best weights [our choice]."""
    workers: int = Field(default=1, ge=0, le=64)
    """Loader workers of each process; no result depends on it."""
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
        dataset: DatasetFacts,
        teacher: TeacherSpec | None,
        initial: StudentSpec | None = None,
        *,
        on_ray: bool = False,
    ) -> "TrainingSpec":
        """Check a JSON object as a `TrainingRequest` and complete it.

        Raises:
            InvalidInput: with a pointer for every field that is unknown, of the wrong type or out of range, alone or
                together with the others.
        """
        from dearkd.specs.training_request import TrainingRequest  # which is made of this class

        return TrainingRequest.check(posted).complete(dataset, teacher, initial, on_ray=on_ray)

    @property
    def units(self) -> list[list[str]]:
        """Names of the job's units of work, in groups as of a synthesis job: it is one piece."""
        return [["run"]]

    @property
    def epochs(self) -> int:
        return self.stage_one.epochs + self.stage_two.epochs

    @property
    def needs_teacher(self) -> bool:
        """Tell whether stage one uses the teacher at all."""
        one = self.stage_one
        asks = one.distillation != "none" and one.weights.distillation > 0 and one.teacher_logits == "computed"
        return one.epochs > 0 and (asks or one.weights.hidden > 0)

    @property
    def reads_logits(self) -> bool:
        """Tell whether stage one learns from logits stored beside the images."""
        return self.stage_one.epochs > 0 and self.stage_one.teacher_logits == "stored"
