"""The spec of a synthesis job, and what follows from it by arithmetic: images, shards, teacher passes."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from dearkd.errors import FieldError, InvalidInput
from dearkd.specs.base import Limits, Precision, Priority, Spec, overlay, require_object
from dearkd.specs.presets import Preset, choose_preset, preset_defaults
from dearkd.specs.teacher import TeacherSpec

MAX_SHARD_BYTES = 5 * 2**30
"""A conditional create is one PUT, and that is what S3 allows one PUT."""
TAR_BLOCK = 512


class Phase(Spec):
    """One resolution of the optimisation; between phases the tensor is upsampled bilinearly."""

    resolution: int = Field(ge=4, le=4096)
    """Side of the optimised tensor, in pixels."""
    input_size: int = Field(ge=8, le=4096)
    """Side of what the teacher sees; the tensor is upsampled to it inside the graph."""
    iterations: int = Field(ge=1)


class SynthesisWeights(Spec):
    """Weights of the objective's terms (method.md, section 1); 0 means that the term is not computed at all."""

    cross_entropy: float = Field(ge=0)
    batch_norm: float = Field(ge=0)
    total_variation_l1: float = Field(ge=0)
    total_variation_l2: float = Field(ge=0)
    l2: float = Field(ge=0)
    adaptive: float = Field(ge=0)
    boundary: float = Field(ge=0)


class SynthesisSpec(Spec):
    """Everything that decides the images of a dataset, filled in. Only `teacher` is required of a posted spec."""

    teacher: str
    preset: Preset
    images_per_class: int = Field(ge=1)
    classes: list[int] = Field(min_length=1)
    batch_size: int = Field(ge=1, le=65536)
    classes_per_batch: int = Field(ge=1)
    """P of the P×K batches; K is batch_size / classes_per_batch."""
    phases: list[Phase] = Field(min_length=1, max_length=16)
    learning_rate: float = Field(gt=0)
    """Adam's, in the normalised space of the teacher's input."""
    betas: list[float] = Field(min_length=2, max_length=2)
    schedule: Literal["constant", "cosine"]
    warmup_iterations: int = Field(ge=0)
    weights: SynthesisWeights
    first_batch_norm_weight: float = Field(ge=0)
    """Weight of the first BatchNorm layer's statistics; the others weigh 1."""
    batch_norm_layer_weights: list[Annotated[float, Field(ge=0)]] | None = None
    """A further factor for the statistics of each BatchNorm layer, in the teacher's order; 0 leaves a layer out."""
    statistics_memory: int = Field(default=0, ge=0)
    """A batch is matched to the statistics together with up to so many images that its shard already holds [R]; 0 is
    DeepInversion's way, each batch for itself."""
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
    boundary_margin: float
    """τ [R]: a sample counts as well inside its class if its logit leads the next by more than this."""
    similarity_margin: float = Field(ge=-1, le=1)
    """m [R]: a cosine similarity to the easy positive that is not punished any more."""
    jitter: int = Field(ge=0)
    """Random roll, up to this many pixels at `input_size`, in both directions and both axes."""
    flip: float = Field(ge=0, le=1)
    """Probability of a horizontal flip at each step; 0 where mirrored objects are other objects (digits, text)."""
    clip: bool
    """Clip to the valid pixel range after every step."""
    crop_min_scale: float = Field(default=1.0, gt=0, le=1)
    """Crop curriculum (CDA): the smallest share of the area that a random crop shows falls from 1 at the first step to
    this at the last; 1 crops nothing. Published: 0.08."""
    divergence_factor: float = Field(default=100.0, gt=1)
    """A batch has diverged if its loss is not finite, or more than so many times the first step's, to which the sum of
    the weights is added for terms that begin at 0 [R]."""
    max_restarts: int = Field(default=3, ge=0, le=20)
    """How often a batch that has diverged starts again from its seed [R]."""
    restart_rate_factor: float = Field(default=0.25, gt=0, lt=1)
    """What the learning rate is multiplied by at each restart [R]."""
    halve_batches: bool = False
    """Whether a batch for which the device has no memory is made in halves: other images than on a larger device."""
    precision: Precision
    """Of the teacher's forward and backward; statistics and losses are always float32."""
    shard_samples: int = Field(ge=1)
    image_format: Literal["png", "webp", "jpeg"]
    store_logits: bool = False
    """Whether each sample gets the teacher's logits of its stored pixels (`.logits.npy`, half precision)."""
    parallelism: int = Field(ge=1, le=1024)
    """How many workers may work on the job at once."""
    priority: Priority
    seed: int = Field(ge=0, lt=2**63)
    name: str | None = Field(default=None, max_length=200)

    @classmethod
    def resolve(cls, posted: Any, teacher: TeacherSpec, limits: Limits | None = None) -> "SynthesisSpec":
        """The complete spec for a posted JSON object; explicit fields win over the preset's.

        Raises:
            InvalidInput: with a pointer for every field that is unknown, of the wrong type or out of range, alone or
                together with the others.
        """
        body = require_object(posted)
        preset = body.get("preset") or choose_preset(teacher.image_size, teacher.in_chans)
        if preset not in ("imagenet", "cifar", "digits"):
            raise InvalidInput.at("/preset", f"unknown preset {preset!r}; there are imagenet, cifar and digits")
        defaults = preset_defaults(preset, teacher.image_size) | {
            "preset": preset,
            "classes": list(range(teacher.num_classes)),
        }
        given = {key: value for key, value in body.items() if not (key in ("classes", "preset") and value is None)}
        given = _with_input_sizes(given, teacher.image_size)
        filled = _fit(overlay(defaults, given), given, teacher)
        spec = cls.check(filled)
        spec._check_against(teacher, given, limits or Limits())
        return spec

    @property
    def images_per_batch_class(self) -> int:
        """K of the P×K batches; a shard that is smaller than a batch is one."""
        return max(1, min(self.batch_size, self.shard_samples) // self.classes_per_batch)

    @property
    def num_samples(self) -> int:
        return self.images_per_class * len(self.classes)

    @property
    def num_shards(self) -> int:
        return -(-self.num_samples // self.shard_samples)

    def shard_lengths(self) -> list[int]:
        """Samples of each shard; only the last may be short."""
        full, rest = divmod(self.num_samples, self.shard_samples)
        return [self.shard_samples] * full + ([rest] if rest else [])

    @property
    def teacher_passes(self) -> int:
        """Forward and backward passes of single images through the teacher, over the whole job, whatever their size."""
        return self.num_samples * sum(phase.iterations for phase in self.phases)

    @property
    def student_shards(self) -> range:
        """The shards that the job's own student is trained on; empty where it trains none."""
        return range(0, self.num_shards, self.adaptive_every) if self.adaptive_every else range(0)

    @property
    def student_passes(self) -> int:
        """Forward passes of single images through the teacher, alone, in the training of the job's own student."""
        return self.adaptive_iterations * self.batch_size if self.adaptive_every else 0

    @property
    def num_units(self) -> int:
        """What has to be done before the manifest can be written: the shards, and the student where one is trained."""
        return self.num_shards + bool(self.adaptive_every)

    def competes(self, shard: int) -> bool:
        """Whether the adaptive term takes part in a shard."""
        return self.weights.adaptive > 0 and shard not in self.student_shards

    def estimated_bytes(self, teacher: TeacherSpec) -> int:
        """Bytes of all shards: pixels as they are (synthetic images compress little), JSON, label, tar headers."""
        return self.num_samples * _sample_bytes(teacher, self.store_logits)

    def _check_against(self, teacher: TeacherSpec, given: Mapping[str, Any], limits: Limits) -> None:
        errors: list[FieldError] = []

        def refuse(pointer: str, detail: str) -> None:
            errors.append(FieldError(pointer, detail))

        for i, label in enumerate(self.classes):
            if not 0 <= label < teacher.num_classes:
                refuse(
                    f"/classes/{i}",
                    f"class {label} is out of range: this teacher has classes 0 to {teacher.num_classes - 1}",
                )
        if len(set(self.classes)) != len(self.classes):
            refuse("/classes", "a class is listed twice; list each once and raise images_per_class instead")
        if self.num_samples > limits.max_images:
            refuse("/images_per_class", f"{self.num_samples} images in all; this server allows {limits.max_images}")
        if self.classes_per_batch > len(self.classes):
            refuse(
                "/classes_per_batch", f"{self.classes_per_batch}, but only {len(self.classes)} classes are asked for"
            )
        if self.batch_size % self.classes_per_batch:
            refuse(
                "/batch_size", f"{self.batch_size} is not a multiple of classes_per_batch ({self.classes_per_batch})"
            )
        for i, phase in enumerate(self.phases):
            if phase.resolution > phase.input_size:
                refuse(f"/phases/{i}/resolution", f"{phase.resolution} is larger than input_size ({phase.input_size})")
            if phase.input_size > limits.max_image_size:
                refuse(f"/phases/{i}/input_size", f"{phase.input_size}; this server allows {limits.max_image_size}")
            if i and phase.resolution < self.phases[i - 1].resolution:
                refuse(
                    f"/phases/{i}/resolution", f"{phase.resolution} is below the phase before: resolutions only grow"
                )
        iterations = sum(phase.iterations for phase in self.phases)
        if iterations > limits.max_iterations:
            refuse("/phases", f"{iterations} iterations in all; this server allows {limits.max_iterations}")
        if self.jitter >= min(phase.input_size for phase in self.phases):
            refuse("/jitter", f"{self.jitter} pixels is not below the smallest input_size")
        if not all(0 <= beta < 1 for beta in self.betas):
            refuse("/betas", f"{self.betas}: Adam's betas lie in [0, 1)")
        if self.warmup_iterations and self.warmup_iterations >= iterations:
            refuse("/warmup_iterations", f"{self.warmup_iterations} leaves none of {iterations} iterations")
        if self.unlabelled_iterations and self.unlabelled_iterations >= iterations:
            refuse(
                "/unlabelled_iterations",
                f"{self.unlabelled_iterations} leaves none of {iterations} iterations in which images have labels",
            )
        if self.unlabelled_iterations and self.weights.batch_norm == 0:
            refuse(
                "/unlabelled_iterations",
                f"{self.unlabelled_iterations}, but weights.batch_norm is 0: without labels nothing says what the "
                "images should become; set it to 0",
            )
        if not any(self.weights.model_dump().values()):
            refuse("/weights", "all of them are 0, so that there is nothing to optimise: leave one above it")
        layers = self.batch_norm_layer_weights
        if layers is not None and not any([self.first_batch_norm_weight * sum(layers[:1]), *layers[1:]]):
            refuse(
                "/batch_norm_layer_weights",
                "no layer weighs anything: leave one above 0; what turns the term off is weights.batch_norm 0",
            )
        if self.weights.boundary > 0 and min(self.images_per_batch_class, self.images_per_class) < 2:
            refuse(
                "/weights/boundary",
                f"{self.weights.boundary}, but a class has one image in a batch and so no positive: set it to 0, or "
                "raise batch_size / classes_per_batch, shard_samples / classes_per_batch and images_per_class to 2 or "
                "more",
            )
        trains = self.weights.adaptive > 0 and self.adaptive_student is None
        if trains and self.num_shards < 2:
            refuse(
                "/weights/adaptive",
                f"{self.weights.adaptive}, but there is one shard, and the student that it needs is trained on the "
                f"first: set shard_samples to at most {(self.num_samples + 1) // 2}, raise images_per_class, name an "
                "adaptive_student, or set the weight to 0",
            )
        if trains and not any(weight for name, weight in self.weights.model_dump().items() if name != "adaptive"):
            refuse(
                "/weights",
                "all but adaptive are 0, which takes no part in the first shards, so that nothing is left to optimise: "
                "leave another above it, or name an adaptive_student",
            )
        if self.adaptive_every is not None and not trains:
            why = "adaptive_student is named" if self.weights.adaptive > 0 else "weights.adaptive is 0"
            refuse("/adaptive_every", f"{self.adaptive_every}, but no student is trained along the way, since {why}")
        if self.adaptive_iterations > limits.max_iterations:
            refuse("/adaptive_iterations", f"{self.adaptive_iterations}; this server allows {limits.max_iterations}")
        if self.adaptive_student is not None and self.weights.adaptive == 0:
            refuse("/adaptive_student", "a student is named, but weights.adaptive is 0: set both or neither")
        sample_bytes = _sample_bytes(teacher, self.store_logits)
        shard_bytes = self.shard_samples * sample_bytes
        if shard_bytes > MAX_SHARD_BYTES:
            refuse(
                "/shard_samples",
                f"{self.shard_samples} samples may take {shard_bytes} bytes; a shard is created in one request of at "
                f"most {MAX_SHARD_BYTES}: {MAX_SHARD_BYTES // sample_bytes} samples fit",
            )
        if errors:
            raise InvalidInput("; ".join(f"{e.pointer}: {e.detail}" for e in errors), errors=errors)


def _with_input_sizes(given: dict[str, Any], image_size: int) -> dict[str, Any]:
    phases = given.get("phases")
    if not isinstance(phases, list):
        return given
    filled = [
        {"input_size": image_size} | {k: v for k, v in phase.items() if not (k == "input_size" and v is None)}
        if isinstance(phase, dict)
        else phase
        for phase in phases
    ]
    return given | {"phases": filled}


def _fit(filled: dict[str, Any], given: Mapping[str, Any], teacher: TeacherSpec) -> dict[str, Any]:
    """Bend those defaults that were not asked for to those fields that were, so that every default works."""
    classes, per_class = filled["classes"], filled["images_per_class"]
    if not isinstance(classes, list) or not classes or not isinstance(per_class, int) or per_class < 1:
        return filled  # the check to come says what is wrong
    batch, groups = filled["batch_size"], filled["classes_per_batch"]
    if not isinstance(batch, int) or not isinstance(groups, int) or batch < 1 or groups < 1:
        return filled
    if "classes_per_batch" not in given:
        groups = max(
            p for p in range(1, min(groups, len(classes), batch) + 1) if batch % p == 0 or "batch_size" not in given
        )
    if "batch_size" not in given:
        batch = groups * max(1, min(batch // groups, per_class))
    filled |= {"batch_size": batch, "classes_per_batch": groups}
    if "shard_samples" not in given:
        batches = max(1, filled["shard_samples"] // batch)
        filled["shard_samples"] = min(
            batches * batch, max(1, MAX_SHARD_BYTES // _sample_bytes(teacher, filled.get("store_logits") is True))
        )
    filled |= _student_shards(filled, given)
    posted_weights = given.get("weights")
    asked = isinstance(posted_weights, Mapping) and "boundary" in posted_weights
    shard = filled["shard_samples"]
    together = min(batch, shard) // groups if isinstance(shard, int) else 1
    if not asked and min(together, per_class) < 2 and isinstance(filled["weights"], dict):
        filled["weights"] = filled["weights"] | {"boundary": 0.0}
    if "jitter" not in given and isinstance(filled["phases"], list):
        sizes = [
            p["input_size"] for p in filled["phases"] if isinstance(p, dict) and isinstance(p.get("input_size"), int)
        ]
        filled["jitter"] = min([filled["jitter"], *(size - 1 for size in sizes if size > 0)])
    if isinstance(filled["phases"], list):
        steps = sum(
            p["iterations"] for p in filled["phases"] if isinstance(p, dict) and isinstance(p.get("iterations"), int)
        )
        if "warmup_iterations" not in given:
            filled["warmup_iterations"] = max(0, min(filled["warmup_iterations"], steps // 10))
        if "unlabelled_iterations" not in given:
            matched = isinstance(filled["weights"], dict) and filled["weights"].get("batch_norm") != 0
            least = min(filled["unlabelled_iterations"], steps // 4)
            filled["unlabelled_iterations"] = max(0, least) if matched else 0
    return filled


def _student_shards(filled: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """How the samples are cut, where a student is trained on some shards, so that there are some and others [R]."""
    weights, shard, batch = filled["weights"], filled["shard_samples"], filled["batch_size"]
    adaptive = weights.get("adaptive") if isinstance(weights, Mapping) else None
    if not isinstance(adaptive, int | float) or adaptive <= 0 or filled.get("adaptive_student") is not None:
        return {}
    samples = len(filled["classes"]) * filled["images_per_class"]
    if "shard_samples" not in given and shard >= samples:
        half = (samples + 1) // 2
        shard = -(-half // batch) * batch if samples > batch else half
    if not isinstance(shard, int) or shard < 1:
        return {}  # the check to come says what is wrong
    cut = {"shard_samples": shard}
    if given.get("adaptive_every") is None:
        group = min(filled["classes_per_batch"], len(filled["classes"])) * filled["images_per_class"]
        # With one group every shard holds all classes.
        cut["adaptive_every"] = 10 if group >= samples else max(2, min(10, group // shard))
    return cut


def _sample_bytes(teacher: TeacherSpec, logits: bool) -> int:
    pixels = teacher.image_size**2 * (1 if teacher.in_chans == 1 else 3)
    members = 3  # image, .cls, .json: a header block each, contents padded to a block
    blocks = members * 2 + -(-pixels // TAR_BLOCK)
    if logits:  # 2 bytes a class, after a header of 128 bytes
        blocks += 1 + -(-(2 * teacher.num_classes + 128) // TAR_BLOCK)
    return blocks * TAR_BLOCK
