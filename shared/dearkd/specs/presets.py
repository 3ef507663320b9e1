"""Presets of a synthesis job: complete specs for a teacher, the defaults of what a request leaves out.

The `teacher` of such a spec is its name; a request says the id.

Each docstring says what is published [P], what is our reconstruction or measurement [R], what it costs and what to
expect. A cost is in teacher passes: one forward and backward of one image through the frozen teacher at its image size,
a smaller input counting by its share of pixels. A step takes 1.0 to 1.15 times its batch's passes, with all that is
beside them (benchmarks/RESULTS.md: one CPU thread, a noisy machine; no GPU). None uses the adaptive term; it adds one
forward and backward of the student a step, and once the training of it where the job trains its own.
"""

from collections.abc import Callable

from dearkd.specs.generator import GeneratorSpec
from dearkd.specs.synthesis import Phase, Preset, SynthesisSpec, SynthesisWeights
from dearkd.specs.teacher import TeacherSpec

LARGE = 64
"""The image size in pixels from which `auto` optimises pixels, shows crops, and makes fewer images at a time [R]."""
GENERATED_BATCH = 30
"""Images of a batch that a generator makes, where two of each class are not more [R]: the fewer, the more steps the
generator of a shard takes in the same passes, and of steps its first batches have too few."""


def half_size(image_size: int) -> int:
    """Half the teacher's image size, at which the first phase of a large teacher is seen, but at least 8 px."""
    return max(8, image_size // 2)


def auto(teacher: TeacherSpec) -> SynthesisSpec:
    """One rule for every teacher [R]: up to 63 px a generator makes the images, from 64 px on they are pixels.

    What both have in common: weights follow from the image size alone, since terms mean the same everywhere; but the
    boundary term's is 3 for a generator, whose images keep their shapes under it, and 1 for pixels, which do not.

    Cost: 100 teacher passes an image up to 63 px, 125 from 64 px on.

    To expect: docs/measured.md, for digits, clothes, letters and photographs at 32 px, and ImageNet at 224 px.
    """
    return pixels(teacher) if teacher.image_size >= LARGE else generated(teacher, 100, boundary=3.0)


def draft(teacher: TeacherSpec) -> SynthesisSpec:
    """`auto` for a fifth of its passes [R]: a first look, or more images for the same cost.

    In so few, a generator does not bear more of the boundary term than pixels do.

    Cost: 20 teacher passes an image up to 63 px, 25 from 64 px on.

    To expect: docs/measured.md and benchmarks/LOG.md.
    """
    made = few_passes(teacher) if teacher.image_size >= LARGE else generated(teacher, 20, boundary=1.0)
    return made.model_copy(update={"preset": "draft"})


def generated(teacher: TeacherSpec, iterations: int, *, boundary: float) -> SynthesisSpec:
    """Images of a generator, in so many iterations each, with this weight of the boundary term [R].

    It goes on from batch to batch of a shard, so that shards are longer and batches smaller than of pixels; what it
    makes has shapes and plain grounds by itself, so that it may be as fine as what the teacher sees. A batch has as
    many classes as it can, up to fifty, two images of each: statistics are those of all classes, and so a batch has to
    have them. Images get their labels after a tenth of the iterations, by what they have become.
    """
    size = teacher.image_size
    classes = min(teacher.num_classes, 50)
    batch = classes * max(2, GENERATED_BATCH // classes)
    base = pixels(teacher)
    return base.model_copy(
        update={
            "phases": [Phase(resolution=size, input_size=size, iterations=iterations)],
            "generator": GeneratorSpec(),
            "batch_size": batch,
            "classes_per_batch": classes,
            "shard_samples": 1000,
            "learning_rate": 0.3,
            "betas": [0.5, 0.99],
            "schedule": "constant",
            "unlabelled_iterations": iterations // 10,
            "weights": base.weights.model_copy(update={"boundary": boundary}),
        }
    )


def pixels(teacher: TeacherSpec) -> SynthesisSpec:
    """Images that are optimised pixel by pixel, as DeepInversion does [P], by one rule for every teacher [R].

    The statistics' distance is relative to the teacher's own deviations, so that its weight does not depend on the
    network, and it counts by its root (`statistics`: `root_gaussian`), as the published norms do: a square no longer
    pulls where it is small, and what that leaves undone can be seen. The optimised tensor has half the side of what the
    teacher sees, and is upsampled in the graph: what is finer than that is noise that the teacher reads and nobody
    else. Images get their labels after a quarter of the iterations, by what they have become.

    Two things follow from sizes. The finer the tensor, the less two neighbours of a real image differ: for one q
    times as large as 16 px the variation weighs q times as much, and the learning rate is divided by √q. Teachers of
    64 px and more see random crops (`crop_min_scale`), as such networks did in their training; smaller ones, whose
    things fill the image, do not. No image is mirrored: letters and signs would become others.

    Cost: 200 teacher passes an image up to 63 px, 125 from 64 px on.
    """
    size = teacher.image_size
    large = size >= LARGE
    phase = Phase(resolution=max(4, size // 2), input_size=size, iterations=125 if large else 200)
    finer = phase.resolution / 16
    return SynthesisSpec(
        teacher=teacher.name,
        preset="auto",
        images_per_class=50 if large else 200,
        classes=list(range(teacher.num_classes)),
        batch_size=80 if large else 200,
        classes_per_batch=10,
        shard_samples=500 if large else 400,
        phases=[phase],
        learning_rate=round(0.8 / finer**0.5, 4),
        betas=[0.9, 0.999],
        schedule="cosine",
        warmup_iterations=0,
        statistics="root_gaussian",
        unlabelled_iterations=phase.iterations // 4,
        first_batch_norm_weight=1.0,
        weights=SynthesisWeights(
            cross_entropy=1.0,
            batch_norm=10.0,
            total_variation_l1=round((0.7 if large else 0.3) * finer, 4),
            total_variation_l2=0.0,
            l2=0.0,
            adaptive=0.0,
            boundary=1.0,
        ),
        jitter=max(1, size // 16),
        flip=0.0,  # colour says nothing about mirrors: letters and signs have it too
        crop_min_scale=0.3 if large else 1.0,
    )


def few_passes(teacher: TeacherSpec) -> SynthesisSpec:
    """Pixels in a tenth of the passes, a fifth from 64 px on [R].

    In twenty steps from noise of its usual size no image gets far: what is coarse is left as it was drawn. So images
    begin fainter, and Adam moves them at several resolutions, at a constant rate and with shorter memory. Since what is
    coarse comes first, small images need little total variation.
    """
    whole = pixels(teacher)
    large = teacher.image_size >= LARGE
    (phase,) = whole.phases
    phase = phase.model_copy(update={"iterations": phase.iterations // (5 if large else 10)})
    variation = whole.weights.total_variation_l1 / (1 if large else 3)
    return whole.model_copy(
        update={
            "phases": [phase],
            "init_std": 0.2 if large else 0.5,
            "pyramid_levels": 3 if large else 2,
            "learning_rate": round(whole.learning_rate / 2, 4),
            "betas": [0.5, 0.9],
            "schedule": "constant",
            "unlabelled_iterations": round(0.4 * phase.iterations),
            "weights": whole.weights.model_copy(update={"total_variation_l1": round(variation, 4)}),
        }
    )


def published_imagenet(teacher: TeacherSpec) -> SynthesisSpec:
    """DeepInversion's ImageNet recipe [P] at true low resolution, with the boundary term [R].

    Published: a ResNet-50 teacher, λ_bn 0.01, λ_tv2 1e-4, λ_l2 1e-5, Adam (0.5, 0.9) at 0.25, 100 warm-up iterations
    and cosine. The published λ_tv2 weighs a norm over the whole batch, ours the same divided by √B (docs/method.md):
    for batches of 80 the same pull is 1e-4·√80, about 9e-4. The weight of the boundary term, its margins and P×K
    batches of 10×8 are ours [R].

    Cost: 2000 iterations at half size (which the teacher sees as it is) and 1000 at full size, so 1500 teacher passes
    an image, half of the 3000 of as many iterations at full size; 75 million for 50 images of 1000 classes. A teacher
    that cannot take half its image size is shown the half-size tensor upsampled: then it is the 3000.

    To expect: not measured here, since no ImageNet teacher was at hand. Published, for other numbers of images and
    students (docs/method.md, section 5): a DeiT-Ti student with top-1 71.2 on images with the boundary term, about 62.6
    on those of DeepInversion.
    """
    half = half_size(teacher.image_size)
    return SynthesisSpec(
        teacher=teacher.name,
        preset="published-imagenet",
        images_per_class=50,
        classes=list(range(teacher.num_classes)),
        batch_size=80,
        classes_per_batch=10,
        shard_samples=500,
        phases=[
            Phase(resolution=half, input_size=half, iterations=2000),
            Phase(resolution=teacher.image_size, input_size=teacher.image_size, iterations=1000),
        ],
        learning_rate=0.25,
        betas=[0.5, 0.9],
        schedule="cosine",
        warmup_iterations=100,
        statistics="l2",
        first_batch_norm_weight=10.0,
        weights=SynthesisWeights(
            cross_entropy=1.0,
            batch_norm=0.01,
            total_variation_l1=0.0,
            total_variation_l2=9e-4,
            l2=1e-5,
            adaptive=0.0,
            boundary=1.0,
        ),
        jitter=max(1, teacher.image_size * 30 // 224),
        flip=0.5,
    )


def published_cifar(teacher: TeacherSpec) -> SynthesisSpec:
    """DeepInversion's CIFAR-10 recipe [P] with the boundary term [R].

    Published: a ResNet-34 teacher, λ_bn 10, λ_tv2 2.5e-5, Adam at a constant 0.05, 2000 iterations, jitter ±2, flips,
    no clipping. λ_tv2 is multiplied by √B as in `published-imagenet`: 2.5e-5·√200 is about 3.5e-4. The boundary term
    and P×K batches of 10×20 are ours [R].

    Cost: 2000 teacher passes an image; 4 million for 200 images of 10 classes.

    To expect: not measured here on CIFAR-10, for which no teacher was at hand; its distance of statistics has the scale
    of the network, so that its weight fits that teacher and few others (docs/method.md).
    """
    size = teacher.image_size
    return SynthesisSpec(
        teacher=teacher.name,
        preset="published-cifar",
        images_per_class=200,
        classes=list(range(teacher.num_classes)),
        batch_size=200,
        classes_per_batch=10,
        shard_samples=1000,
        phases=[Phase(resolution=size, input_size=size, iterations=2000)],
        learning_rate=0.05,
        betas=[0.9, 0.999],
        schedule="constant",
        warmup_iterations=0,
        statistics="l2",
        first_batch_norm_weight=1.0,
        weights=SynthesisWeights(
            cross_entropy=1.0,
            batch_norm=10.0,
            total_variation_l1=0.0,
            total_variation_l2=3.5e-4,
            l2=0.0,
            adaptive=0.0,
            boundary=1.0,
        ),
        jitter=max(1, size * 2 // 32),
        flip=0.5,
        clip=False,
    )


OF_PIXELS: dict[Preset, Callable[[TeacherSpec], SynthesisSpec]] = {"auto": pixels, "draft": few_passes}
"""The presets that may make images by a generator, without it."""
PRESETS: dict[Preset, Callable[[TeacherSpec], SynthesisSpec]] = {
    "auto": auto,
    "draft": draft,
    "published-imagenet": published_imagenet,
    "published-cifar": published_cifar,
}
