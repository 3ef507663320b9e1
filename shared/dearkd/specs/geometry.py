"""The student's image size and patch size, chosen together where the spec leaves them out [R].

A grid of 8 to 20 patches a side (64 to 400 tokens) is what the recipes are made for: with 4×4 tokens a student learns
digits and little else.
"""

from dearkd.errors import InvalidInput

SMALLEST_IMAGE, LARGEST_IMAGE = 8, 4096
MIN_SIDE_IN_PATCHES, MAX_SIDE_IN_PATCHES = 8, 20
MAX_SIDE_IN_GIVEN_PATCHES = 64


def choose_image_size(near: int, patch_size: int | None = None) -> int:
    """The size itself where a good grid of patches divides it, else one close to it which such a grid divides.

    Args:
        near: what the images or the teacher have, in pixels a side.
        patch_size: of the student, where it is given: the size is a multiple of it.
    """
    near = min(max(near, SMALLEST_IMAGE), LARGEST_IMAGE)
    if patch_size is not None and patch_size <= LARGEST_IMAGE:  # a larger one divides no image, and is refused
        return _multiple(near, patch_size)
    if _good_patch(near) is not None:
        return near
    return _multiple(near, max(step for step in (1, 2, 4, 8, 16) if step * MIN_SIDE_IN_PATCHES <= near))


def choose_patch_size(image_size: int) -> int:
    """The largest patch up to 16 px that divides the image and gives at least 8×8 tokens.

    Where that makes more than 20×20 tokens, the smallest patch that makes fewer. Of an image that no patch divides so,
    the first after all, up to 64×64 tokens.

    Raises:
        InvalidInput: at `/student/image_size`, where even that is exceeded: the size is a prime number or the like.
    """
    good = _good_patch(image_size)
    if good is not None:
        return good
    patch = _usual_patch(image_size)
    if image_size > MAX_SIDE_IN_GIVEN_PATCHES * patch:
        close = choose_image_size(image_size)
        raise InvalidInput.at(
            "/student/image_size",
            f"no patch size divides {image_size} into a grid of {MAX_SIDE_IN_GIVEN_PATCHES} patches a side or fewer: "
            f"take {close}, close by, or set patch_size too",
        )
    return patch


def _good_patch(image_size: int) -> int | None:
    usual = _usual_patch(image_size)
    if image_size <= MAX_SIDE_IN_PATCHES * usual:
        return usual
    sides = (side for side in range(MAX_SIDE_IN_PATCHES, MIN_SIDE_IN_PATCHES - 1, -1) if image_size % side == 0)
    larger = next((image_size // side for side in sides), None)
    # Up to 320 px a grid of the usual patch lies close by; beyond, no image has one.
    return larger if image_size > MAX_SIDE_IN_PATCHES * 16 else None


def _usual_patch(image_size: int) -> int:
    return max((p for p in range(1, 17) if image_size % p == 0 and image_size // p >= MIN_SIDE_IN_PATCHES), default=1)


def _multiple(near: int, step: int) -> int:
    """The multiple of `step` that is nearest to a size, within the bounds of images where there is one."""
    lowest, highest = -(-SMALLEST_IMAGE // step), max(LARGEST_IMAGE // step, 1)
    return step * min(max((near + step // 2) // step, lowest), highest)
