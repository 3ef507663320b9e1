"""Numbers of images and epochs that fit a time."""

import math

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from dearkd.cli.fields import parse_time
from dearkd.errors import InvalidInput
from dearkd_distill.budget import LEAST_EPOCHS, SHARE, fit, fit_epochs

seconds = st.floats(1e-4, 10.0)


@given(
    budget=st.floats(1, 1e6),
    per_image=seconds,
    per_image_and_epoch=seconds,
    images_per_class=st.integers(1, 60),
    num_classes=st.integers(2, 1000),
    epochs=st.integers(1, 300),
)
def test_what_fits_is_as_much_as_fits(
    budget: float, per_image: float, per_image_and_epoch: float, images_per_class: int, num_classes: int, epochs: int
) -> None:
    def cost(images: int) -> float:
        """By the rule as it is documented: epochs shrink by the root of the images' factor, down to their least."""
        some = min(epochs, max(min(LEAST_EPOCHS, epochs), round(epochs * math.sqrt(images / images_per_class))))
        return images * num_classes * (per_image + some * per_image_and_epoch)

    fitting = [images for images in range(1, images_per_class + 1) if cost(images) <= SHARE * budget]
    figures = {"per_image": per_image, "per_image_and_epoch": per_image_and_epoch, "num_classes": num_classes}
    if not fitting:
        with pytest.raises(InvalidInput, match="give a budget of at least"):
            fit(budget, images_per_class=images_per_class, epochs_for=lambda _: epochs, **figures)
        return
    images, some = fit(budget, images_per_class=images_per_class, epochs_for=lambda _: epochs, **figures)
    assert images == max(fitting)
    assert images * num_classes * (per_image + some * per_image_and_epoch) <= SHARE * budget
    assert 1 <= some <= epochs


@pytest.mark.parametrize(("budget", "epochs"), [(10, 8), (2.5, 2), (1e6, 50)])
def test_epochs_on_images_that_are_there_fit_too(budget: float, epochs: int) -> None:
    assert fit_epochs(budget, per_epoch=1.0, usual=50) == epochs
    with pytest.raises(InvalidInput, match="at least 3 s, or fewer images"):
        fit_epochs(2, per_epoch=1.0, usual=50)


@pytest.mark.parametrize(
    ("text", "wanted"), [("90", 90), ("90s", 90), ("30m", 1800), ("2h", 7200), ("1.5d", 129600), ("0.5m", 30)]
)
def test_times_are_read(text: str, wanted: float) -> None:
    assert parse_time(text, "--budget") == wanted


@pytest.mark.parametrize("text", ["", "m", "-5m", "0", "soon", "nan", "inf", "1e999h", "3 weeks"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="30m"):
        parse_time(text, "--budget")
