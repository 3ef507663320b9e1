"""Presets of a synthesis job: complete specs for a teacher, the defaults of what a request leaves out.

The `teacher` of such a spec is its name; a request says the id.

Each docstring says what is published [P], what is our reconstruction or measurement [R], what it costs and what to
expect. A cost is in teacher passes: one forward and backward of one image through the frozen teacher at its image size,
a smaller input counting by its share of pixels. A step takes 1.0 to 1.15 times its batch's passes, with all that is
beside them (benchmarks/RESULTS.md: one CPU thread, a noisy machine; no GPU). None uses the adaptive term; it adds one
forward and backward of the student a step, and once the training of it where the job trains its own.
"""

from collections.abc import Callable

from dearkd.specs.synthesis import Phase, Preset, SynthesisSpec, SynthesisWeights
from dearkd.specs.teacher import TeacherSpec


def choose_preset(teacher: TeacherSpec) -> Preset:
    """The preset for a teacher that names none: by image size, and below 112 px by colour [R]."""
    if teacher.image_size >= 112:
        return "imagenet"
    return "cifar" if teacher.in_chans == 3 else "digits"


def half_size(image_size: int) -> int:
    """The image size of the first phase of `imagenet`: half the teacher's, but at least 8 px."""
    return max(8, image_size // 2)


def imagenet(teacher: TeacherSpec) -> SynthesisSpec:
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
        preset="imagenet",
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


def cifar(teacher: TeacherSpec) -> SynthesisSpec:
    """Small colour images [R]: a tensor of half the side, upsampled in the graph, labels given late, as in `digits`.

    Published for CIFAR-10 and ResNet-34: λ_bn 10, λ_tv2 2.5e-5, Adam at a constant 0.05, 2000 iterations, jitter ±2 [P:
    the jitter is all that is kept]. With those weights and 400 iterations a ResNet-10 gave a tenth of the images their
    label (benchmarks/LOG.md).

    Cost: 400 teacher passes an image, a fifth of the published schedule; 800,000 for 200 images of 10 classes.

    To expect: not measured here on CIFAR-10, for which no teacher was at hand.
    """
    size = teacher.image_size
    return SynthesisSpec(
        teacher=teacher.name,
        preset="cifar",
        images_per_class=200,
        classes=list(range(teacher.num_classes)),
        batch_size=200,
        classes_per_batch=10,
        shard_samples=1000,
        phases=[Phase(resolution=max(4, size // 2), input_size=size, iterations=400)],
        learning_rate=0.2,
        betas=[0.9, 0.999],
        schedule="cosine",
        warmup_iterations=0,
        unlabelled_iterations=100,
        first_batch_norm_weight=1.0,
        weights=SynthesisWeights(
            cross_entropy=2.0,
            batch_norm=0.5,
            total_variation_l1=0.3,
            total_variation_l2=0.0,
            l2=0.0,
            adaptive=0.0,
            boundary=5.0,
        ),
        jitter=max(1, size * 2 // 32),
        flip=0.5,
    )


def digits(teacher: TeacherSpec) -> SynthesisSpec:
    """Small grey images of smooth shapes [R]: a tensor of 12 px for 32 px input, upsampled in the graph.

    The statistics weigh twenty times what they did at first, which makes better digits. It is possible because images
    get their labels after 50 iterations, by what they look like: an image of noise that is told its class at once then
    keeps another one. A cosine without warm-up comes nearer to the statistics than a constant rate. With 120 iterations
    and a warm-up the teacher was as sure and students as good, but many images were no digits to the eye
    (benchmarks/LOG.md).

    Cost: 200 teacher passes an image; 400,000 for 200 images of 10 classes.

    To expect, measured on scikit-learn's digits with a resnet10t of 99.3 to 100 % (benchmarks/RESULTS.md, seeds 0 to
    2): the teacher gives 98.8 to 99.3 % of the images their label, mean intra-class cosine distance 0.41 to 0.44, and a
    DearKD-ViT trained on 2,000 of them reaches 98.3 to 98.9 % on real held-out digits.
    """
    size = teacher.image_size
    return SynthesisSpec(
        teacher=teacher.name,
        preset="digits",
        images_per_class=200,
        classes=list(range(teacher.num_classes)),
        batch_size=200,
        classes_per_batch=10,
        shard_samples=400,
        phases=[Phase(resolution=max(4, round(size * 12 / 32)), input_size=size, iterations=200)],
        learning_rate=0.4,
        betas=[0.9, 0.999],
        schedule="cosine",
        warmup_iterations=0,
        unlabelled_iterations=50,
        first_batch_norm_weight=1.0,
        weights=SynthesisWeights(
            cross_entropy=1.0,
            batch_norm=5.0,
            total_variation_l1=1e-3,
            total_variation_l2=0.0,
            l2=0.0,
            adaptive=0.0,
            boundary=1.0,
        ),
        jitter=max(1, size // 32),
        flip=0.0,
    )


PRESETS: dict[Preset, Callable[[TeacherSpec], SynthesisSpec]] = {"imagenet": imagenet, "cifar": cifar, "digits": digits}
